"""Fields that models generate, one file a family: tags, embeddings, profiles, features."""
