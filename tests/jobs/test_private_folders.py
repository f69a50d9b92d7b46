"""Where every user may write, /tmp and /dev/shm: what another user has put there is not used, followed or removed."""

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from distgrad.launching import cleanup, job
from distgrad.launching.job_folder import JobFolder
from support import strangers
from support.launching import launch, program

pytestmark = strangers.needs_strangers
SHM = Path("/dev/shm")


@pytest.fixture
def everywhere() -> Iterator[Path]:
    """A folder like /tmp: everybody may write, and nobody may rename what others have made."""
    folder = SHM / f"distgrad-test-{os.getpid()}"
    folder.mkdir()
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.fault(37)
def test_a_folder_in_memory_is_never_one_that_was_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stranger who sees the job's folder is quicker than the job at making those that may be next."""
    (tmp_path / "precious").touch()
    made: list[Path] = []

    @contextlib.contextmanager
    def stranger_first(folder: str) -> Iterator[None]:
        name = SHM / Path(folder).name
        made.extend([name, Path(f"{name}-aaaaaaaa"), Path(f"{name}-link")])
        strangers.does('mkdir -m 777 "$1" "$2" && ln -s "$4" "$1"/link && ln -s "$4" "$3"', *made, tmp_path)
        with cleanup.cleanup_process(folder):
            yield

    monkeypatch.setattr(job, "cleanup_process", stranger_first)
    try:
        with job.temporary_job_folder() as folder:
            environment = job.with_job_mark({}, folder, on_this_host=True)
            used = {Path(environment[name]) for name in (*job.OPEN_MPI_MEMORY, *job.OPEN_MPI_FOLDER)}
            for path in used:
                assert path.lstat().st_uid == os.geteuid()
                assert stat.S_IMODE(path.lstat().st_mode) == 0o700
            assert any(path.parent == SHM for path in used)
            (folder.path / "link").symlink_to(tmp_path)
        assert not any(path.exists() for path in used)
        assert all(path.is_symlink() or path.is_dir() for path in made)
        assert (tmp_path / "precious").exists()
    finally:
        for path in made:
            strangers.remove(path)


@pytest.mark.fault(37)
def test_a_job_folder_that_a_stranger_made_is_neither_read_nor_written(everywhere: Path, tmp_path: Path) -> None:
    """As on another host, where the path of the job's folder stands in the command line and may be free."""
    path, target = everywhere / "distgrad-job-12345678", tmp_path / "target"
    draft = f"0.started.{os.getpid()}.draft"
    strangers.does('mkdir -m 777 "$1" && ln -s "$2" "$1/$3" && echo {} >"$1"/environment', path, target, draft)
    strangers.does("""echo '{"LD_PRELOAD": "/tmp/mine.so"}' >"$1"/environment""", path)
    for folder in (path, everywhere / "link"):
        assert JobFolder(folder).read_environment() == {}
        JobFolder(folder).record(0, "started", "1")
        strangers.does('ln -sfn "$1" "$2"', tmp_path, everywhere / "link")
    assert not target.exists()
    assert not (path / "0.started").exists()
    assert not (tmp_path / "0.started").exists()


@pytest.mark.fault(37)
def test_mpi_ends_without_making_the_files_that_a_stranger_has_put_links_to(tmp_path: Path) -> None:
    code = f"""
        import re, sys
        import distgrad
        from support import strangers
        comm = distgrad.connect()
        maps = open("/proc/self/maps").read()
        for name in set(re.findall(r"(/\\S*vader_segment\\S*) \\(deleted\\)", maps)) if comm.is_root else ():
            strangers.does('ln -s "$1" "$2"', f"{tmp_path}/made-{{name.rpartition('.')[2]}}", name)
            print("link", name, flush=True)
        comm.barrier()
    """
    ended = launch("mpi", 2, program(code))[0]
    assert ended.status == 0, ended.err
    names = [line.split()[1] for line in ended.lines("link")]
    assert len(names) == 2
    assert list(tmp_path.iterdir()) == []
    assert not any(Path(name).is_file() for name in names)
    for name in names:
        Path(name).unlink(missing_ok=True)
