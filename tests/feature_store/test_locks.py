"""Everything that reads or writes HDF5 works where the file system has no locks."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

WITHOUT_LOCKS = """
import ctypes, errno, platform, struct
def refuse_locks():
    # A filter of the kernel (seccomp): flock fails in this process as on a file system without locks.
    architecture, flock = {"x86_64": (0xC000003E, 73), "aarch64": (0xC00000B7, 32)}[platform.machine()]
    refuse, allow = 0x00050000 | errno.ENOLCK, 0x7FFF0000
    steps = [(0x20, 0, 0, 4), (0x15, 0, 3, architecture), (0x20, 0, 0, 0), (0x15, 0, 1, flock)]
    program = b"".join(struct.pack("HBBI", *step) for step in [*steps, (0x06, 0, 0, refuse), (0x06, 0, 0, allow)])
    buffer = ctypes.create_string_buffer(program)
    fprog = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    if libc.prctl(22, 2, ctypes.create_string_buffer(fprog), 0, 0) != 0:
        raise SystemExit(77)
refuse_locks()
"""


def without_locks(code, *arguments):
    """Run code in a process whose kernel refuses every lock on a file."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LOCKS + code, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("this kernel lets no process filter its own calls")
    return done


def test_the_filter_does_refuse_locks(tmp_path):
    done = without_locks(
        "import fcntl, h5py, sys\n"
        "try:\n    fcntl.flock(open(sys.argv[1], 'w'), fcntl.LOCK_EX)\n"
        "except OSError as error:\n    print(error.errno == errno.ENOLCK)\n"
        "try:\n    h5py.File(sys.argv[1] + '.h5', 'w', locking=True)\n"
        "except OSError as error:\n    print('refused')\n",
        tmp_path / "file",
    )
    assert done.stdout.split() == ["True", "refused"], done.stderr


@pytest.mark.slow
def test_harvests_are_written_trained_on_and_cross_validated_without_locks(tmp_path):
    code = (
        "import sys\nfrom dps.cli import run\n"
        "from tests.lightning_modules.harvests import make_questions, write_harvest\n"
        "folder = sys.argv[1]\n"
        "store = write_harvest(folder + '/harvest', make_questions(60))\n"
        "small = ['--config', 'configs/gbdt.yaml', f'--data.init_args.store={store}', '--trainer.max_epochs=1',\n"
        "         '--model.init_args.min_rows_per_leaf=20', '--data.init_args.num_orders=1']\n"
        "codes = [run(['fit', *small, f'--trainer.default_root_dir={folder}/gbdt']),\n"
        "         run(['crossval', *small, '--folds=2', f'--output={folder}/crossval']),\n"
        "         run(['replay', store, f'--controllers={{gbdt: {folder}/crossval}}', '--resamples=100',\n"
        "              f'--output={folder}/replay']),\n"
        "         run(['store', 'verify', store]), run(['store', 'export', store, f'--output={folder}/x.csv']),\n"
        "         run(['store', 'merge', store, f'--output={folder}/merged'])]\n"
        "print(codes)\n"
    )
    done = without_locks(code, tmp_path)
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 0, 0, 0]", done.stdout + done.stderr


def test_only_one_module_opens_hdf5_files():
    sources = [
        path
        for folder in ("dps", "lightning_modules", "feature_store", "scripts")
        for path in (ROOT / folder).rglob("*.py")
    ]
    opening = [path.name for path in sources if re.search(r"h5py\.File\(", path.read_text(encoding="utf-8"))]
    assert opening == ["hdf5.py"]
