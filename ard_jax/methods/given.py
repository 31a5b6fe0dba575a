"""What a batch may bring beside images and labels, so that a method need not make it anew."""


def logits_column(role: str) -> str:
    """Key of a batch under which the eval-mode logits [B,K] of a teacher at the clean images are."""
    return f"{role}_natural_logits"
