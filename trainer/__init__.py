"""Cross-lingual post-training of encoders and their evaluation on KLUE-RE."""
