"""A journal keeps what it was told: what is torn is dropped, what is damaged is named, and nothing changes silently."""

import errno
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoflop.errors import CheckpointError
from isoflop.runs import journal
from isoflop.runs.journal import (
    JournalWriter,
    attempts,
    chain_samples,
    encode_row,
    read_journal,
    verify_ledger,
)

Order = list[tuple[Any, Any]]
ORDER: Order = [(np.array([0]), np.array([step])) for step in range(40)]


def rows_of(first: int, last: int, stride: int = 2) -> list[dict[str, Any]]:
    """Rows of steps first … last, as a run writes them."""
    rows = []
    for step in range(first + stride, last + 1, stride):
        chain = ""
        for batch in ORDER[:step]:
            chain = chain_samples(chain, *batch)
        rows.append(
            {"kind": "train", "step": step, "since": step - stride, "images": step, "loss": 1 / step, "samples": chain}
        )
    return rows


def attempt(directory: Path, start: int, last: int, origin: str = "scratch") -> Path:
    writer = JournalWriter(directory, start, origin)
    for row in rows_of(start, last):
        writer.write(row)
    writer.close()
    return max((directory / "attempts").iterdir()) / "metrics-0001.jsonl"


def test_every_flipped_bit_is_named_or_without_effect(tmp_path: Path) -> None:
    """No bit changes a value or drops another row; each that costs a row is told, by its file and line."""
    file = attempt(tmp_path, 0, 6)
    whole, content = rows_of(0, 6), file.read_bytes()
    assert read_journal(tmp_path) == whole
    lines = content.split(b"\n")
    for bit in (8 * place + place % 8 for place in range(len(content))):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(bytes(damaged))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = read_journal(tmp_path)
        assert all(row in whole for row in found)
        assert len(found) >= len(whole) - 2  # a newline that is gone takes the rows on both sides
        assert bool(told) == bool(found.damaged)
        if found != whole:
            line = content[: bit // 8].count(b"\n") + 1
            assert found.damaged[0].line == line, (bit, lines[line - 1])
            with pytest.raises(CheckpointError, match=r"rows are missing|is damaged|no rows"):
                verify_ledger(found, ORDER)
        elif not told:
            assert verify_ledger(found, ORDER) == 6


def test_a_line_torn_by_a_kill_is_dropped_without_a_word(tmp_path: Path) -> None:
    file = attempt(tmp_path, 0, 6)
    content = file.read_bytes()
    end = content[:-1].rfind(b"\n") + 1
    for cut in range(end, len(content) - 1):
        file.write_bytes(content[:cut])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            expected = rows_of(0, 4) if cut < len(content) - 1 else rows_of(0, 6)
            assert read_journal(tmp_path) == expected
    attempt(tmp_path, 4, 8, "checkpoint")
    assert verify_ledger(read_journal(tmp_path), ORDER, steps=8) == 8
    assert read_journal(tmp_path).restarts == (4,)


def test_rows_after_a_damaged_one_count_and_a_later_attempt_replaces_it(tmp_path: Path) -> None:
    file = attempt(tmp_path, 0, 8)
    lines = file.read_bytes().split(b"\n")
    lines[3] = lines[3].replace(b'"loss": 0.1', b'"loss": 0.2')
    file.write_bytes(b"\n".join(lines))
    with pytest.warns(UserWarning, match=r"1/metrics-0001.jsonl: damaged: line 4 is not as it was written"):
        found = read_journal(tmp_path)
    assert [row["step"] for row in found] == [2, 4, 8]
    assert [(damage.line, damage.after) for damage in found.damaged] == [(4, 4)]
    attempt(tmp_path, 4, 8, "checkpoint")  # trained again from before it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert verify_ledger(read_journal(tmp_path), ORDER) == 8


@pytest.mark.parametrize("kind", ["start", "rollback"])
def test_a_damaged_row_that_takes_back_others_takes_them_back_all_the_same(tmp_path: Path, kind: str) -> None:
    file = attempt(tmp_path, 0, 8)
    if kind == "start":
        file = attempt(tmp_path, 4, 10, "checkpoint")
    else:
        rows = [{"kind": "rollback", "step": 4, "from": 8}, *rows_of(4, 10)]
        file.write_bytes(file.read_bytes() + b"".join(map(encode_row, rows)))
    content = file.read_bytes()
    place = content.index(b'"' + kind.encode() + b'"')
    file.write_bytes(content[:place] + b"'" + content[place + 1 :])
    with pytest.warns(UserWarning, match="damaged"):
        assert verify_ledger(read_journal(tmp_path), ORDER) == 10


def test_journals_without_checksums_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "attempts/1"
    folder.mkdir(parents=True)
    lines = [json.dumps(row) for row in ({"kind": "start", "step": 0, "origin": "scratch"}, *rows_of(0, 6))]
    (folder / "metrics-0001.jsonl").write_text("\n".join(lines) + "\n" + lines[-1][:20])
    assert verify_ledger(read_journal(tmp_path), ORDER) == 6
    lines[2] = lines[2][:10]
    (folder / "metrics-0001.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.warns(UserWarning, match="line 3"):
        assert [row["step"] for row in read_journal(tmp_path)] == [2, 6]
    attempt(tmp_path, 6, 8, "checkpoint")  # a later version goes on in the same run
    with pytest.warns(UserWarning, match="line 3"):
        assert [row["step"] for row in read_journal(tmp_path)] == [2, 6, 8]


def test_a_ledger_with_rows_missing_is_no_proof(tmp_path: Path) -> None:
    attempt(tmp_path, 0, 8)
    rows = read_journal(tmp_path)
    assert verify_ledger(rows, ORDER, steps=8) == 8
    for missing in ([], rows[1:], rows[:2] + rows[3:]):
        with pytest.raises(CheckpointError, match=r"no rows|rows are missing"):
            verify_ledger(missing, ORDER)
    for missing in (rows[:-1], []):
        with pytest.raises(CheckpointError, match=r"ends at step 6 of 8|no rows"):
            verify_ledger(missing, ORDER, steps=8)
    with pytest.raises(CheckpointError, match="the order of samples to 5"):
        verify_ledger(rows, ORDER[:5])
    with pytest.raises(CheckpointError, match="other samples"):
        verify_ledger(rows, ORDER[1:])


def test_steps_that_a_trunk_trained_are_no_rows_that_are_missing(tmp_path: Path) -> None:
    attempt(tmp_path, 4, 8, "trunk")
    assert verify_ledger(read_journal(tmp_path), ORDER) == 8
    attempt(tmp_path, 0, 8)  # the trunk is gone, and the run begins anew
    assert read_journal(tmp_path).begins == 0
    assert len(read_journal(tmp_path)) == 4


def test_files_are_synced_before_the_next_is_begun_and_rows_in_memory_do_not_count_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "ROWS_PER_FILE", 3)
    synced: list[str] = []
    fsync = os.fsync

    def note(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    monkeypatch.setattr(journal.os, "fsync", note)
    writer = JournalWriter(tmp_path, 0, "scratch")
    for row in rows_of(0, 8):
        writer.write(row)
    assert "metrics-0001.jsonl" in synced
    writer.sync()
    assert synced[-1] == "metrics-0002.jsonl"

    class Full:
        closed = False

        def __init__(self, file: Any) -> None:
            self.fileno, self.seek, self.close = file.fileno, file.seek, file.close

        def write(self, line: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    file = writer._file
    writer._file = Full(file)
    with pytest.warns(UserWarning, match=r"metrics-0002.jsonl: the journal cannot be written: No space left"):
        writer.write(rows_of(8, 10)[0])
    with pytest.raises(OSError, match=r"metrics-0002.jsonl"):
        writer.sync()
    writer._file = file
    writer.close()
    assert [row["step"] for row in read_journal(tmp_path)] == [2, 4, 6, 8, 10]
    assert len(list(attempts(tmp_path))) == 1
