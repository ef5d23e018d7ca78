"""BERT encoders in JAX: pretraining, fine-tuning, and everything between raw text and a result."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bert_jax.pretrained import load

__all__ = ["load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports ``load``, and JAX with it, when it is first asked for (PEP 562)."""
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bert_jax.pretrained import load

    return load
