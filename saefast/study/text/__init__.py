"""The text of the studies: real and varied, each document tagged by its kind, from packages that need no hub."""

from saefast.study.text.prepare import prepare

__all__ = ["prepare"]
