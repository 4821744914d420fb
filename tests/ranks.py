"""Two gloo processes that run the functions a test sends them."""

import traceback
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WAIT = 40


def serve(rank, store, tasks, results):
    """A rank: runs the functions it is sent, until it is sent None or one of them fails."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=15),
    )
    while (task := tasks.get()) is not None:
        function, arguments = task
        try:
            results.put((rank, function(rank, *arguments), None))
        except Exception:
            results.put((rank, None, traceback.format_exc()))


class Ranks:
    """Two processes kept between tests, for starting them takes most of the time."""

    def __init__(self, folder):
        self.folder = folder
        self.processes = []
        self.started = 0

    def start(self):
        context = mp.get_context("spawn")
        self.results = context.Queue()
        self.tasks = [context.SimpleQueue() for _ in range(2)]
        self.processes = [
            context.Process(
                target=serve,
                args=(rank, self.folder / f"store{self.started}", self.tasks[rank], self.results),
                daemon=True,
            )
            for rank in range(2)
        ]
        self.started += 1
        for process in self.processes:
            process.start()

    def stop(self):
        for process in self.processes:
            process.terminate()
            process.join()
        self.processes = []

    def run(self, function, *arguments):
        """What ``function(rank, *arguments)`` returns on both ranks."""
        if not self.processes:
            self.start()
        for tasks in self.tasks:
            tasks.put((function, arguments))
        answers = {}
        try:
            for _ in range(2):
                rank, answer, error = self.results.get(timeout=WAIT)
                if error:
                    raise AssertionError(f"rank {rank}: {error}")
                answers[rank] = answer
        except BaseException:
            # After a failure the ranks are at different points.
            self.stop()
            raise
        return answers[0], answers[1]
