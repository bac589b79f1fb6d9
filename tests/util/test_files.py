"""Files that are replaced as a whole."""

import pytest

from lsam_hpc.util.files import replace_file


def test_replace_file_keeps_the_old_contents_when_writing_fails(tmp_path):
    path = tmp_path / "file"
    replace_file(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half of the n")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        replace_file(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    replace_file(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_replace_file_leaves_no_part_and_names_the_disk_error_that_torch_hides(tmp_path):
    path = tmp_path / "file"

    def fail(file):
        file.write(b"half of the n")
        try:
            raise OSError("no space")
        except OSError:
            raise RuntimeError("unexpected pos 704 vs 598") from None

    with pytest.raises(OSError, match="no space"):
        replace_file(path, fail)
    assert list(tmp_path.iterdir()) == []
