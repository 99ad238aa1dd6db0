"""A recipe as it ships, vLLM included, on processors: run by torchrun, fsdp2.py RECIPE FOLDER [--key value ...]

What is not a setting and cannot be as it ships is in `on_cpu` and in `tests.shipped.take_processors_for_gpus`. Writes
the responses of every request to a server.
"""

import json
import sys
from pathlib import Path

from benchmarks.fixtures.fsdp2_on_cpu import check_sharded
from entropy_grpo import launch
from entropy_grpo.training import server, train
from tests import shipped

from . import on_cpu


def record_requests(file: Path) -> None:
    """Note how many responses every request asks for."""
    post = server.Server.post

    def recorded(self, url, json):
        with open(file, "a") as lines:
            lines.write(f"{len(json['prompt']) * json['n']}\n")
        return post(self, url, json=json)

    server.Server.post = recorded


def main() -> None:
    recipe, folder, *words = sys.argv[1:]
    shipped.take_processors_for_gpus()
    on_cpu.keep_weights_unpacked()
    on_cpu.colocate(enforce_eager=True, enable_sleep_mode=False)
    (Path(folder) / "sent").mkdir(exist_ok=True)
    on_cpu.sync_by_file(Path(folder) / "sent")
    record_requests(Path(folder) / "requests.txt")
    finish = train.finish

    def check_and_finish(trainer):
        check_sharded(trainer.model)
        report = {"sleeps": trainer.vllm_generation.enable_sleep_mode, "mode": trainer.vllm_mode}
        if trainer.vllm_mode == "colocate":
            report["gpus"] = trainer.vllm_generation.llm.llm_engine.vllm_config.parallel_config.tensor_parallel_size
        if trainer.is_world_process_zero():
            (Path(folder) / "report.json").write_text(json.dumps(report))
        finish(trainer)

    train.finish = check_and_finish
    launch.run(recipe, words)


if __name__ == "__main__":
    main()
