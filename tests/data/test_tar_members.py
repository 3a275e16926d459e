"""Members of tar files: the same as Python's `tarfile` finds, for every format, and damage is noticed."""

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.data.tar import DamagedTar, TarMember, tar_members

NAMES = st.lists(
    st.text(
        st.characters(codec="utf-8", exclude_characters="/\x00", exclude_categories=("Cs",)), min_size=1, max_size=90
    ),
    min_size=1,
    max_size=4,
).map("/".join)


def members_of(path: Path) -> list[TarMember]:
    file = os.open(path, os.O_RDONLY)
    try:
        return list(tar_members(file))
    finally:
        os.close(file)


def write(path: Path, names: list[str], tar_format: int, kind: bytes = tarfile.REGTYPE) -> None:
    with tarfile.open(path, "w", format=tar_format) as tar:
        for k, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.type = kind
            member.size = k * 300 if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(bytes([k % 256]) * member.size))


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@settings(max_examples=60)
@given(names=st.lists(NAMES, min_size=1, max_size=6))
def test_members_are_those_that_tarfile_finds(
    tmp_path_factory: pytest.TempPathFactory, tar_format: int, names: list[str]
) -> None:
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    write(path, names, tar_format)
    with tarfile.open(path) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar]
    assert [(m.name, m.offset, m.size) for m in members_of(path)] == expected


def test_ustar_names_in_two_parts_are_put_together(tmp_path: Path) -> None:
    names = ["/".join(["folder" * 5] * 4) + "/image.jpg", "short.jpg"]
    write(tmp_path / "a.tar", names, tarfile.USTAR_FORMAT)
    assert [member.name for member in members_of(tmp_path / "a.tar")] == names


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (tarfile.DIRTYPE, "directory"),
        (tarfile.SYMTYPE, "link"),
        (tarfile.LNKTYPE, "link"),
        (tarfile.CHRTYPE, "other"),
        (tarfile.FIFOTYPE, "other"),
        (tarfile.REGTYPE, "file"),
        (tarfile.AREGTYPE, "file"),
    ],
)
def test_kinds_are_told_apart(tmp_path: Path, kind: bytes, expected: str) -> None:
    write(tmp_path / "a.tar", ["thing"], tarfile.GNU_FORMAT, kind)
    assert members_of(tmp_path / "a.tar")[0].kind == expected


def test_a_cut_anywhere_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write(path, [f"{k}.jpg" for k in range(12)], tarfile.USTAR_FORMAT)
    content = path.read_bytes()
    end = len(content.rstrip(b"\x00"))
    for cut in range(1, end, 97):
        path.write_bytes(content[:cut])
        with pytest.raises(DamagedTar):
            members_of(path)


def test_random_damage_never_does_worse_than_an_error(tmp_path: Path) -> None:
    import numpy as np

    path = tmp_path / "a.tar"
    write(path, ["n" * 120 + str(k) for k in range(5)], tarfile.PAX_FORMAT)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content) // 2, 4):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(bytes(damaged))
        try:
            members_of(path)
        except DamagedTar:
            continue
