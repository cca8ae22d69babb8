"""A site to look inside: plain files that open from the file system, made from records.

    write_site(records, "runs/demo/look", Vocabulary(tokenizer), Effects.load(records.folder))

docs/look/site.md says what it shows. assets/ has the page itself, as it is shipped: JavaScript without a build step, in the
order in which index.html names it. The data is made by latents.py (a latent's page), lists.py (the list and its search) and
texts.py (texts with all active latents), and packed into scripts by pack.py; site.py writes the folder.
"""

from saefast.interp.look.site import Compared, write_site

__all__ = ["Compared", "write_site"]
