"""Cold start of a size on the GPU. It is the cold start of `entropy_grpo.tasks.sized` without `use_cpu`.

python -m benchmarks.gpu.cold_start TASK SIZE --seed N --output FOLDER
"""

import trl

from entropy_grpo.tasks import sized

SFTConfig = trl.SFTConfig


def settings(**given: object) -> trl.SFTConfig:
    """TRL's settings of a cold start, for the device that torch finds."""
    return SFTConfig(**given | {"use_cpu": False})


if __name__ == "__main__":
    # Where it is called it cannot be given another value: its text keys the cached models.
    trl.SFTConfig = settings
    sized.main()
