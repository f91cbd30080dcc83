"""The dataset on disk: nothing that was told is lost, whatever happens to the writer."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
from worlds import CAMERA_SPEC, SPEC, WORLD, episode, same, transition

from mbrl_dynamics import episodes
from mbrl_dynamics.episodes import EpisodeStore, files, read, recover
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.transition import Answer, Transition


def fill(folder: Path, count: int = 5, spec=SPEC, *, close: bool = True) -> EpisodeStore:
    store = EpisodeStore(folder, spec)
    store.announce(spec, WORLD)
    for number in range(count):
        store.add(transition(0, number, spec=spec))
        store.add_answer(Answer(WORLD, 0, number, "test", np.ones((2, 1))), 0.05 * number)
    if close:
        store.close()
    return store


def states(folder: Path) -> list[Transition]:
    return [record for record in read(folder, ["state"]) if isinstance(record, Transition)]


@pytest.mark.parametrize("spec", [SPEC, CAMERA_SPEC], ids=["vector", "camera"])
def test_reads_back_in_order(tmp_path: Path, spec) -> None:
    fill(tmp_path, spec=spec)
    first, *rest = read(tmp_path)
    assert first == spec
    assert all(same(record, transition(0, i, spec=spec)) for i, record in enumerate(rest[::2]))
    assert [record.step for record in rest[1::2]] == list(range(5))


def test_every_recording_gets_a_file_of_its_own(tmp_path: Path) -> None:
    fill(tmp_path)
    fill(tmp_path)
    assert [path.name for path in files(tmp_path)] == ["000.mcap", "001.mcap"]
    assert [s.step for s in states(tmp_path)] == [*range(5), *range(5)]


def test_nothing_is_written_before_there_is_something(tmp_path: Path) -> None:
    EpisodeStore(tmp_path / "new", SPEC).close()
    assert list((tmp_path / "new").iterdir()) == []


def test_others_can_read_it(tmp_path: Path) -> None:
    """The reference reader finds a summary, and the decoder that Foxglove's tools use reads the messages."""
    fill(tmp_path, spec=CAMERA_SPEC)
    with files(tmp_path)[0].open("rb") as file:
        reader = make_reader(file, decoder_factories=[DecoderFactory()])
        summary = reader.get_summary()
        counts = {
            summary.channels[channel].topic: count
            for channel, count in summary.statistics.channel_message_counts.items()
        }
        assert counts == {"spec": 1, "state": 5, "action": 5}
        assert reader.get_header().profile == "ros2"
        decoded = [msg for _, channel, _, msg in reader.iter_decoded_messages() if channel.topic == "state"]
    assert decoded[3].step == 3
    assert list(decoded[3].observation) == list(transition(0, 3).observation)
    assert decoded[3].images[0].data == bytes([3]) * 36


def test_images_cost_their_bytes(tmp_path: Path) -> None:
    spec = type(SPEC)(SPEC.task, SPEC.observation, SPEC.action, 0.05, cameras=(episodes_camera(),))
    store = EpisodeStore(tmp_path, spec)
    store.add(transition(0, 0, spec=spec))
    before = store.path.stat().st_size
    store.add(transition(0, 1, spec=spec))
    assert store.path.stat().st_size - before < 64 * 64 * 3 + 500


def episodes_camera():
    return type(CAMERA_SPEC.cameras[0])("eye", 64, 64)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("whole")
    fill(folder, 8)
    return files(folder)[0].read_bytes()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.data())
def test_a_file_cut_anywhere_is_recovered(whole: bytes, tmp_path: Path, cut) -> None:
    length = cut.draw(st.integers(0, len(whole)), label="cut at")
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    path = tmp_path / "000.mcap"
    path.write_bytes(whole[:length])
    before = [s.step for s in states(tmp_path)]  # readable even without its end
    EpisodeStore(tmp_path, SPEC)
    assert [s.step for s in states(tmp_path)] == before == list(range(len(before)))
    complete_records = sum(offset <= length for offset in message_ends(whole))
    assert len(list(read(tmp_path))) == complete_records
    if not complete_records:
        assert not path.exists()
        return
    with path.open("rb") as file:
        assert make_reader(file).get_summary().statistics.message_count == complete_records
    assert not recover(path)  # once is enough
    again = cut.draw(st.integers(0, path.stat().st_size), label="killed while recovering, or cut again, at")
    os.truncate(path, again)
    EpisodeStore(tmp_path, SPEC)
    assert len(list(read(tmp_path))) == sum(offset <= min(again, length) for offset in message_ends(whole))


def message_ends(data: bytes) -> list[int]:
    ends, position = [], 8
    while data[position] != 0x0F:  # the end of the data
        length = int.from_bytes(data[position + 1 : position + 9], "little")
        position += 9 + length
        if data[position - 9 - length] == 0x05:  # a message
            ends.append(position)
    return ends


def test_zeros_at_the_end_are_no_records(tmp_path: Path, whole: bytes) -> None:
    """What a file system may leave after a power failure."""
    (tmp_path / "000.mcap").write_bytes(whole[: message_ends(whole)[3]] + bytes(5000))
    EpisodeStore(tmp_path, SPEC)
    assert len(list(read(tmp_path))) == 4


WRITER = """
import sys
from pathlib import Path
from worlds import SPEC, WORLD, transition
from mbrl_dynamics.episodes import EpisodeStore
store = EpisodeStore(Path(sys.argv[1]), SPEC)
store.announce(SPEC, WORLD)
for step in range(10**9):
    store.add(transition(0, step))
    print(step, flush=True)
"""


def test_sigkill_loses_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) == 500:
            process.send_signal(signal.SIGKILL)
            break
    told = 500 + len(process.stdout.read().split())
    process.wait()
    EpisodeStore(tmp_path, SPEC)
    steps = [s.step for s in states(tmp_path)]
    assert steps == list(range(len(steps)))
    assert len(steps) >= told


def test_a_full_disk_ends_the_recording_and_nothing_else(tmp_path: Path) -> None:
    store = fill(tmp_path, close=False)
    limit = store.path.stat().st_size + 1000  # room for some records, and for a part of the next
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        for step in range(5, 50):
            store.add(transition(0, step))
        assert not store.recording
        assert store.error.startswith("recording stopped: ")
        store.close()
        kept = [s.step for s in states(tmp_path)]
        assert kept == list(range(len(kept)))
        assert 5 < len(kept) < 50
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    EpisodeStore(tmp_path, SPEC)  # with room again, the file gets its end
    assert [s.step for s in states(tmp_path)] == kept
    with files(tmp_path)[0].open("rb") as file:
        assert make_reader(file).get_summary() is not None


def test_a_disk_full_from_the_beginning(tmp_path: Path, monkeypatch) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(episodes.os, "write", full)
    store = fill(tmp_path)
    assert store.error == "recording stopped: No space left on device"
    assert list(read(tmp_path)) == []


def test_two_processes_do_not_share_a_recording(tmp_path: Path) -> None:
    fill(tmp_path, close=False)
    with pytest.raises(UserError, match="another process records into"):
        EpisodeStore(tmp_path, SPEC)


def test_foreign_files_are_refused_and_left_alone(tmp_path: Path, whole: bytes) -> None:
    foreign = whole.replace(b"mbrl_dynamics", b"someone_else_")[:-50]
    (tmp_path / "000.mcap").write_bytes(foreign)
    with pytest.raises(UserError, match="was not recorded by"):
        EpisodeStore(tmp_path, SPEC)
    assert (tmp_path / "000.mcap").read_bytes() == foreign


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be used"):
        EpisodeStore(tmp_path / "file", SPEC)


def test_many_episodes(tmp_path: Path) -> None:
    store = EpisodeStore(tmp_path, SPEC)
    store.announce(SPEC, WORLD)
    told = [t for number in range(3) for t in episode(number)]
    for t in told:
        store.add(t)
    store.close()
    assert all(same(a, b) for a, b in zip(states(tmp_path), told, strict=True))
