"""What the tests of formats beside other projects have in common."""

import json

import torch
from safetensors.torch import load_file

from saefast import SAE, formats

D_SAE, K = 96, 8


def scramble(module, threshold=lambda noise: 1 + 0.2 * noise.abs()):
    """Every parameter random, of a size at which some latents are active and others are not."""
    generator = torch.Generator().manual_seed(1)
    for name, param in module.named_parameters():
        noise = torch.randn(param.shape, generator=generator)
        scale = 0.05 if param.ndim == 2 else 0.5
        param.data.copy_((threshold(noise) if "threshold" in name else scale * noise).to(param.dtype))


def same(got, want, tolerance=1e-5):
    assert got.shape == want.shape
    assert float((got - want).detach().abs().max()) <= tolerance * float(want.detach().abs().max())


def dense(sae, x):
    acts, indices = sae.encode(x)
    return torch.zeros(len(x), sae.config.d_sae).scatter_(1, indices.long(), acts)


def same_code(ours, theirs):
    """Activations equal, and some of them 0."""
    same(ours, theirs)
    assert 0 < int((theirs != 0).sum()) < theirs.numel()


def same_files(a, b):
    """The same bits in every tensor, the same configuration."""
    names = {path.name for path in a.iterdir()}
    assert names == {path.name for path in b.iterdir()}
    for name in names:
        if name.endswith(".safetensors"):
            mine, theirs = load_file(a / name), load_file(b / name)
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[n], theirs[n]) and mine[n].dtype == theirs[n].dtype for n in mine)
        elif name.endswith(".json"):
            assert json.loads((a / name).read_text()) == json.loads((b / name).read_text())
        else:
            mine, theirs = torch.load(a / name, weights_only=True), torch.load(b / name, weights_only=True)
            assert mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


def there_and_back(theirs, folder, format):
    """Read by us, kept in a folder of ours, written again: the same files."""
    sae = SAE.from_pretrained(theirs)
    assert sae.origin.format == format
    sae.save_pretrained(folder / "ours")
    formats.save(SAE.from_pretrained(folder / "ours"), folder / "again", format)
    same_files(theirs, folder / "again")
    return sae
