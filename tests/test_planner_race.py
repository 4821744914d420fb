"""Which candidate wins, after how many turns: races with made-up times."""

import random

import pytest

from neq_kernels.planner.race import ENOUGH, MOST, Race


def run(times, limit=100):
    """The winner and the turns, where ``times[name]()`` is what a turn takes."""
    race, turns = Race(list(times)), []
    while race.winner() is None:
        assert len(turns) < limit
        name = race.next()
        warms_up = race.warms_up(name)
        turns.append(name)
        if not warms_up:
            race.add(name, times[name]())
    return race.winner(), turns


def noisy(time, noise, draw):
    return lambda: time * (1 + noise * abs(draw.gauss(0, 1)))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("ratio", [1.15, 1.4, 3.0])
def test_the_faster_wins_in_spite_of_noise(seed, ratio):
    draw = random.Random(seed)
    times = {"dense": noisy(ratio, 0.03, draw), "packed": noisy(1.0, 0.03, draw)}
    assert run(times)[0] == "packed"
    times = {"dense": noisy(1.0, 0.03, draw), "packed": noisy(ratio, 0.03, draw)}
    assert run(times)[0] == "dense"


def test_what_is_hopeless_gets_one_timed_turn():
    winner, turns = run({"dense": lambda: 1.0, "packed": lambda: 2.0})
    assert winner == "dense"
    assert turns.count("packed") == 2  # one to warm up, one on time


def test_what_is_alike_spends_its_turns_and_no_more():
    draw = random.Random(0)
    winner, turns = run({name: noisy(1.0, 0.1, draw) for name in ("dense", "packed")})
    assert winner in ("dense", "packed")
    assert turns.count("dense") <= MOST + 1
    assert turns.count("packed") <= MOST + 1


def test_what_is_clear_stops_early():
    _, turns = run({"dense": lambda: 1.0, "packed": lambda: 1.2})
    assert len(turns) == 2 * (ENOUGH + 1)


def test_turns_go_back_and_forth():
    race = Race(["a", "b"])
    assert [race.next() for _ in range(8)] == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_a_slow_first_turn_counts_for_nothing():
    later = iter([1.0] * 50)
    first = iter([100.0])
    times = {"dense": lambda: 1.3, "packed": lambda: next(first, None) or next(later)}
    race = Race(["dense", "packed"])
    while race.winner() is None:
        name = race.next()
        warms_up, time = race.warms_up(name), times[name]()
        if not warms_up:
            race.add(name, time)
    assert race.winner() == "packed"
    assert race.ms()["packed"] == 1.0


def test_one_bad_turn_of_the_winner_does_not_lose_it_the_race():
    packed = iter([1.0, 9.0] + [1.0] * 20)
    assert run({"dense": lambda: 1.2, "packed": lambda: next(packed)})[0] == "packed"


def test_three_candidates():
    times = {"dense": lambda: 1.3, "packed": lambda: 1.0, "fused": lambda: 1.1}
    winner, turns = run(times)
    assert winner == "packed"
    assert len(turns) <= 3 * (MOST + 1)
