"""Key files: refused if others can read them, except for a container's mounted secrets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hybridmoe.cluster.key_file import read_key_file
from hybridmoe.errors import ConfigError

KEY = "long enough to be no word"


def test_a_key_that_others_can_read_or_that_is_no_file_is_refused(tmp_path: Path) -> None:
    key, pipe = tmp_path / "key", tmp_path / "pipe"
    key.write_text(KEY)
    for mode in (0o644, 0o602):
        key.chmod(mode)
        with pytest.raises(ConfigError, match=rf"key: all users .* \(mode {mode:o}\): chmod 600"):
            read_key_file(key)
    key.chmod(0o440)  # of a group that a container runs with
    assert read_key_file(key) == KEY.encode()
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        with pytest.raises(ConfigError, match=r": expected a regular file"):
            read_key_file(path)


@pytest.mark.parametrize(
    ("mount", "options", "mode", "is_read"),
    [
        ("-t tmpfs tmpfs", "ro", 0o644, True),  # Kubernetes
        ("-t tmpfs tmpfs", "ro", 0o444, True),  # Docker Swarm
        ("-t tmpfs tmpfs", "ro", 0o646, False),
        ("-t tmpfs tmpfs", "rw", 0o644, False),  # /tmp, /dev/shm
        ("--bind .", "ro,bind", 0o644, False),  # a disk
    ],
)
def test_a_secret_that_is_mounted_for_a_container_may_be_readable_by_its_users(
    tmp_path: Path, mount: str, options: str, mode: int, is_read: bool
) -> None:
    """In a mount namespace, with Kubernetes' links to the file."""
    script = f"""
        mount {mount} {tmp_path} || exit 77
        mkdir {tmp_path}/..2026 && printf '{KEY}' > {tmp_path}/..2026/key
        chmod {mode:o} {tmp_path}/..2026/key
        ln -s ..2026 {tmp_path}/..data && ln -s ..data/key {tmp_path}/key
        mount -o remount,{options} {tmp_path}
        exec {sys.executable} -c '
from pathlib import Path
from hybridmoe.cluster.key_file import read_key_file
print(read_key_file(Path("{tmp_path}/key")).decode())'
    """
    command = ["unshare", "--mount", "sh", "-ec", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    if done.stderr.startswith("unshare: ") or done.returncode == 77:
        pytest.skip(f"mounting takes root: {done.stderr}")
    assert (done.stdout == f"{KEY}\n") == is_read, done.stderr
    assert is_read or "all users of this machine can read or write it" in done.stderr
