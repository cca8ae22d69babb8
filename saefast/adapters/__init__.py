"""Drop-in trainers for other projects: one line of theirs changes, the rest of their code stays as it is.

One module for each: `dictionary_learning`, `sae_lens`, `sparsify`, `llamascopium`. Importing one changes nothing; what
replaces parts of a library does so when it is called, and can be undone.
"""
