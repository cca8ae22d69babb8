"""Archives from PyPI, npm and Debian: downloaded by their own clients, never installed, and kept in a folder."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from saefast.errors import InputError


class Stopwatch:
    """Prints one line per finished stage, with the seconds since the previous one."""

    def __init__(self, name: str) -> None:
        self.name, self.start = name, time.perf_counter()

    def __call__(self, stage: str) -> None:
        now = time.perf_counter()
        print(f"{self.name}: {now - self.start:5.1f} s  {stage}", flush=True)
        self.start = now


class Package(NamedTuple):
    """A published archive. Debian's have no version of ours: a mirror keeps the newest only, so they may change."""

    registry: str  # "pypi", "npm" or "debian"
    name: str
    version: str
    sha256: str  # of the archive; "" for Debian's, which apt checks
    licence: str  # of the text that is read, as far as it is known

    @property
    def requirement(self) -> str:
        """As pip takes it."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}\n"


def pip_download(requirements: str, folder: Path) -> list[Path]:
    """Download pinned archives into `folder` without installing them; pip checks their sha256.

    The hashes also matter because pip runs the setup script of a source archive to read its metadata: only these bytes
    are ever run.

    Raises:
        InputError: pip could not get one of them; then none is there.
    """
    wanted = folder / "requirements.txt"
    wanted.write_text(requirements)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "download", "--no-deps", "--dest", str(folder), "--requirement", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wanted.unlink()
    if done.returncode:
        names = ", ".join(line.split()[0] for line in requirements.splitlines())
        errors = [line for line in done.stderr.splitlines() if line.lower().startswith("error")]
        raise InputError(f"pip could not download {names}: {(errors or [done.stderr.strip()])[0]}")
    return sorted(folder.iterdir())


def npm_download(package: Package, folder: Path) -> Path:
    """Download a package of npm into `folder`; raises InputError if npm cannot, or if it is another file."""
    command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    _run(command, folder, package)
    [archive] = folder.iterdir()
    if _sha256(archive) != package.sha256:
        raise InputError(f"npm: {package.name} {package.version} is not the file that was published")
    return archive


def apt_download(name: str, folder: Path) -> Path:
    """Download the newest version of a Debian package into `folder`; raises InputError if apt has none."""
    _run(["apt-get", "download", name], folder, Package("debian", name, "", "", ""))
    [archive] = folder.glob(f"{name}_*.deb")
    return archive


def _run(command: list[str], folder: Path, package: Package) -> None:
    try:
        subprocess.run(command, cwd=folder, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise InputError(f"{command[0]} has no {package.name} {package.version}".rstrip()) from None


def fetch(packages: Iterable[Package], cache: Path, log: Callable[[str], None]) -> dict[str, Path]:
    """The archive of each package, by its name, from `cache` or downloaded into it. One that cannot be had is left out, with a
    line that says so. An archive is moved into the cache when it is whole.
    """
    packages = list(packages)
    cache.mkdir(parents=True, exist_ok=True)
    missing = [package for package in packages if not _home(package, cache).exists()]
    of_pypi = [package for package in missing if package.registry == "pypi"]
    with tempfile.TemporaryDirectory(dir=cache, prefix=".downloads-") as temporary:
        if len(of_pypi) > 1:
            with suppress(InputError):  # then they are tried one by one, to see which it is
                folder = _folder(temporary, "all")
                archives = pip_download("".join(package.requirement for package in of_pypi), folder)
                by_sum = {_sha256(archive): archive for archive in archives}
                for package in of_pypi:
                    home = _folder(temporary, package.sha256)
                    by_sum[package.sha256].rename(home / by_sum[package.sha256].name)
                    home.rename(_home(package, cache))
                log(f"downloaded {len(of_pypi)} archives from PyPI")
        for package in missing:
            home = _home(package, cache)
            if not home.exists():
                try:
                    _download(package, _folder(temporary, "one")).parent.rename(home)
                except InputError as error:
                    log(f"skipped {package.name}: {error}")
                    continue
                log(f"downloaded {package.name} from {package.registry}")
    homes = {package.name: _home(package, cache) for package in packages}
    return {name: next(home.iterdir()) for name, home in homes.items() if home.exists()}


def _home(package: Package, cache: Path) -> Path:
    """The folder of its archive; with another hash it is another folder, so an old file is not taken for a new one."""
    name = package.name.replace("/", "+").lstrip("@")
    return cache / "-".join(filter(None, [package.registry, name, package.sha256[:12]]))


def _folder(parent: str, name: str) -> Path:
    """A new folder. It is open to all: apt downloads as a user of its own."""
    folder = Path(parent) / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _download(package: Package, folder: Path) -> Path:
    if package.registry == "pypi":
        return pip_download(package.requirement, folder)[0]
    return npm_download(package, folder) if package.registry == "npm" else apt_download(package.name, folder)
