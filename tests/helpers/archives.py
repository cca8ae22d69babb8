"""Small archives such as PyPI has."""

import io
import tarfile
import zipfile


def wheel(folder, members):
    with zipfile.ZipFile(folder / "pack.whl", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return folder / "pack.whl"


def sdist(folder, members):
    with tarfile.open(folder / "pack.tar.gz", "w:gz") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return folder / "pack.tar.gz"
