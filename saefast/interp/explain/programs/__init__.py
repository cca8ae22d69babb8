"""Explanations without a language model: the mean of each token, patterns of tokens, rules in English."""
