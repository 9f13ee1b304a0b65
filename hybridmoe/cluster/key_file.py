"""File with the secret of a cluster: read, unless other users of the machine can, too."""

import os
import stat
from pathlib import Path

from hybridmoe.errors import ConfigError

__all__ = ["read_key_file"]

_LEAST_BYTES = 16
_MOST_BYTES = 1 << 16


def read_key_file(path: Path) -> bytes:
    """Read the secret, without white space around it.

    Refused if all users of the machine can read or write it; but Kubernetes and Docker Swarm mount
    secrets for their container alone, readable by all of its users unless told otherwise.
    Errors: ConfigError.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            raise ConfigError(f"cluster_key_file {path}: expected a regular file")
        mode = stat.S_IMODE(status.st_mode)
        if mode & stat.S_IWOTH or (mode & stat.S_IROTH and not _is_mounted_secret(path, status)):
            raise ConfigError(
                f"cluster_key_file {path}: all users of this machine can read or write it"
                f" (mode {mode:o}): chmod 600"
            )
        with path.open("rb") as file:
            key = file.read(_MOST_BYTES + 1).strip()
    except OSError as error:
        raise ConfigError(f"cluster_key_file {path}: {error.strerror}") from None
    if not _LEAST_BYTES <= len(key) <= _MOST_BYTES:
        raise ConfigError(
            f"cluster_key_file {path}: {len(key)} bytes, expected {_LEAST_BYTES} to"
            f" {_MOST_BYTES}: head -c 32 /dev/urandom | base64 makes one"
        )
    return key


def _is_mounted_secret(path: Path, status: os.stat_result) -> bool:
    """True if it is in memory, mounted so that nothing here can write: a container's secret."""
    if not os.statvfs(path).f_flag & os.ST_RDONLY:
        return False
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    with Path("/proc/self/mountinfo").open() as mounts:
        for mount in mounts:
            of_mount, _, of_system = mount.partition(" - ")
            if of_mount.split()[2] == device:
                return of_system.split()[0] == "tmpfs"
    return False
