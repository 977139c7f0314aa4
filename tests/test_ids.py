import json
import os
import threading
import time
import uuid

import eventcore as ec
from eventcore.ids import Ids, SystemClock, format_uuid7
from eventcore.vocabulary import HandlerChanged

MILLISECOND = 1_000_000


def test_an_id_is_a_uuid_of_version_7():
    """Ids are UUIDv7 (RFC 9562): version 7, variant 10, and the time in milliseconds first."""
    time_ns = 1_700_000_000_123 * MILLISECOND + 999_999
    made = uuid.UUID(format_uuid7(time_ns, 1, 2))
    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert made.int >> 80 == 1_700_000_000_123


def test_an_id_is_written_as_uuids_are():
    """The text is the canonical one: lower case, 8-4-4-4-12."""
    text = format_uuid7(1_700_000_000_123 * MILLISECOND, 1, 2)
    assert str(uuid.UUID(text)) == text


def test_the_free_bits_are_salt_plus_sequence():
    """The id is a pure function of time, sequence and salt; its 74 free bits are their sum."""
    for salt, sequence in ((0, 1), (2**62 - 1, 1), (2**73 - 1, 10**9), (12345, 0)):
        made = uuid.UUID(format_uuid7(0, sequence, salt)).int
        free = ((made >> 64) & 0xFFF) << 62 | made & (2**62 - 1)
        assert free == salt + sequence


def test_an_id_is_the_same_however_it_is_made():
    """What ids of a millisecond have in common is made once; they are still that function of time, number and salt."""
    ids = Ids()
    carries = 2**48 - ids.salt % 2**48  # the sequence number from which on more than the last digits change
    for first in (0, carries - 3):
        for number, millisecond in enumerate((5, 5, 5, 6, 5, 6, 6)):
            time_ns, sequence = millisecond * MILLISECOND + number, first + number
            assert ids.uuid7(time_ns, sequence) == format_uuid7(time_ns, sequence, ids.salt)
    ids.renew()
    assert ids.uuid7(time_ns, 1) == format_uuid7(time_ns, 1, ids.salt)


def test_ids_do_not_repeat():
    """100,000 ids of one process are all different, though they share their milliseconds."""
    ids, clock = Ids(), SystemClock()
    made = {format_uuid7(clock.time_ns(), ids.next_sequence(), ids.salt) for _ in range(100_000)}
    assert len(made) == 100_000


def test_ids_sort_by_emission():
    """Ids of one process sort in the order they were made, within a millisecond too."""
    ids = Ids()
    made = [format_uuid7(1000 * MILLISECOND + i // 50, ids.next_sequence(), ids.salt) for i in range(10_000)]
    assert made == sorted(made)


def test_threads_never_get_the_same_sequence_number():
    """Eight threads taking sequence numbers get each number once."""
    ids = Ids()
    taken = [[] for _ in range(8)]

    def take(mine):
        mine.extend(ids.next_sequence() for _ in range(5_000))

    threads = [threading.Thread(target=take, args=(mine,)) for mine in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for mine in taken for number in mine) == list(range(1, 40_001))


def test_a_seed_makes_ids_the_same_again():
    """``Ids(seed=…)`` gives the same salt, trace and span ids each time, for tests."""
    one, two, other = Ids(seed=7), Ids(seed=7), Ids(seed=8)
    assert (one.salt, one.random_bits(128)) == (two.salt, two.random_bits(128))
    assert one.salt != other.salt


def test_unseeded_ids_differ():
    """Without a seed each emitter has ids of its own."""
    assert Ids().salt != Ids().salt
    assert Ids().random_bits(128) != Ids().random_bits(128)


def test_a_forked_child_renews_its_salt():
    """The salt is renewed in a forked child, so parent and child never make the same id."""
    ids = Ids()
    ids.next_sequence()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            made = {"salt": ids.salt, "trace": ids.random_bits(128), "sequence": ids.next_sequence()}
            os.write(write_end, json.dumps(made).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        made = json.loads(pipe.read())
    os.waitpid(child, 0)
    assert made["salt"] != ids.salt
    assert made["trace"] != ids.random_bits(128)
    assert made["sequence"] == 1


def test_an_envelope_has_the_id_of_its_time():
    """An envelope's id carries the time of its emit and is the same each time it is read."""
    emitter = ec.Emitter(ids=Ids(seed=1))
    sequence = emitter.ids.next_sequence()
    now = time.time_ns()
    envelope = ec.Envelope(
        HandlerChanged(handler="h", what="failed", reason="-"), ec.Severity.INFO, (), now, sequence, emitter.ids, None
    )
    assert envelope.id == format_uuid7(now, sequence, emitter.ids.salt)
    assert envelope.id is envelope.id
