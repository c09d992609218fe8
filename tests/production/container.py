"""A container as an OCI runtime runs it: no network, no capability, a read-only root, a tmpfs at /tmp."""

import json
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any


class Container:
    """``runc run`` of an image's root file system with its configuration, as ``docker run`` would do it."""

    def __init__(self, root: Path, config: dict[str, Any], bundle: Path, *arguments: str, **env: str) -> None:
        self.id = f"topk-test-{uuid.uuid4().hex[:12]}"
        self.env = [*config["Env"], *(f"{name}={value}" for name, value in env.items())]
        self.user = [int(number) for number in config["User"].split(":")]
        self._state = bundle / "state"
        command = [*config["Entrypoint"], *(arguments or config["Cmd"])]
        (bundle / "config.json").write_text(json.dumps(self._description(root, config["WorkingDir"], command)))
        self.process = subprocess.Popen(
            [*self._runc("run"), "--bundle", str(bundle), self.id], stderr=subprocess.PIPE, text=True
        )

    def wait_until_ready(self) -> dict[str, Any]:
        """The log line that says so."""
        assert self.process.stderr
        said = []
        for line in self.process.stderr:
            said.append(line)
            if line.startswith("{") and (entry := json.loads(line))["event"] == "ready":
                ready: dict[str, Any] = entry
                return ready
        raise AssertionError(f"it never was ready: {said}")

    def execute(self, *command: str, content: bytes = b"", **env: str) -> "subprocess.CompletedProcess[bytes]":
        """Run a command inside, as its user and with its variables."""
        variables = [f"--env={pair}" for pair in [*self.env, *(f"{name}={value}" for name, value in env.items())]]
        user = ":".join(map(str, self.user))
        return subprocess.run(
            [*self._runc("exec"), *variables, f"--user={user}", self.id, *command],
            input=content,
            capture_output=True,
            timeout=60,
        )

    def status(self) -> dict[str, str]:
        """What the kernel says of its first process, from /proc/PID/status."""
        state = json.loads(subprocess.run([*self._runc("state"), self.id], check=True, capture_output=True).stdout)
        lines = Path(f"/proc/{state['pid']}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def signal(self, name: str) -> int:
        """Send it a signal and wait for its exit code."""
        subprocess.run([*self._runc("kill"), self.id, name], check=True)
        return self.process.wait(60)

    def finish(self) -> tuple[int, str]:
        """Wait until it ends by itself: exit code and log."""
        _, log = self.process.communicate(timeout=120)
        return self.process.returncode, log

    def close(self) -> None:
        """End it, should it still run."""
        subprocess.run([*self._runc("delete"), "--force", self.id], capture_output=True)
        self.process.wait(60)
        assert self.process.stderr
        self.process.stderr.close()

    def _runc(self, command: str) -> list[str]:
        return ["runc", "--root", str(self._state), command]

    def _description(self, root: Path, folder: str, command: list[str]) -> dict[str, Any]:
        uid, gid = self.user
        writable = {"nosuid", "nodev"}
        mounts = [
            ("/proc", "proc", []),
            ("/sys", "sysfs", ["nosuid", "noexec", "nodev", "ro"]),
            ("/dev", "tmpfs", ["nosuid", "mode=755"]),
            ("/dev/shm", "tmpfs", [*writable, "noexec", "mode=1777"]),
            ("/tmp", "tmpfs", [*writable, "noexec", "mode=1777"]),
        ]
        return {
            "ociVersion": "1.0.2",
            "root": {"path": str(root), "readonly": True},
            "hostname": "topk",
            "process": {
                "terminal": False,
                "user": {"uid": uid, "gid": gid},
                "args": command,
                "env": self.env,
                "cwd": folder,
                "noNewPrivileges": True,
                "capabilities": {},
            },
            "mounts": [
                {"destination": path, "type": kind, "source": kind, "options": options}
                for path, kind, options in mounts
            ],
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
        }


def pip_settings(folder: Path) -> list[str]:
    """This machine's settings of pip as flags of ``buildah build``: secrets, and mounts of the folders they name."""
    pip = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(pip, check=True, capture_output=True, text=True).stdout.splitlines()
    found = {name.rpartition(".")[2]: value.strip("'") for name, _, value in (line.partition("=") for line in listed)}
    indices = {
        key: found[key] for key in ("index-url", "extra-index-url", "find-links", "trusted-host") if key in found
    }
    (folder / "pip.conf").write_text(
        "\n".join(["[global]", *(f"{key} = {value}" for key, value in indices.items()), ""])
    )
    flags = ["--secret", f"id=pip,src={folder / 'pip.conf'}"]
    if "cert" in found:
        flags += ["--secret", f"id=ca,src={found['cert']}"]
    urls = [url for value in indices.values() for url in value.split()]
    local = [Path(url) for url in urls if url.startswith("/")]
    local += [
        Path(url.removeprefix("file://")).parent for url in urls if url.startswith("file://")
    ]  # of index and files
    return flags + [flag for path in sorted(set(local)) for flag in ("--volume", f"{path}:{path}:ro")]
