"""Explainers and judges that ask a language model."""
