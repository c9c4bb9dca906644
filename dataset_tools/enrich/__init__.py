"""Fields that models generate, one file a family: tags, texts, embeddings, profiles, features."""
