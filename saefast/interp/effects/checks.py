"""Whether records and an SAE belong together."""

from saefast.errors import check
from saefast.files import digest
from saefast.interp.records import Records
from saefast.sae import SAE


def check_same(records: Records, sae: SAE) -> None:
    """Raise InputError unless these are records of this SAE, by its weights."""
    described = records.index["sae"]
    for name in ("d_in", "d_sae"):
        want, got = described[name], getattr(sae.config, name)
        check(want == got, f"sae: expected the one of the records, with {name} = {want}, got {got}")
    same = described["digest"] == digest(sae.tensors)
    check(same, f"sae: expected the one of the records in {records.folder}, got one with other weights")
