"""BERT encoders in JAX: pretraining, fine-tuning, and everything between raw text and a result."""

__version__ = "0.1.0"
