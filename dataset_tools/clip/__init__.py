"""Unit vectors of texts and images: encoders, the checks on images, and their download."""
