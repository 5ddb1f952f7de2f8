"""`mmedge` with sharded weights on a CPU: accelerate offers FSDP for accelerators only, torch shards anywhere.

    torchrun --nproc-per-node 2 -m tests.fsdp_on_cpu distill RECIPE --out RUN

Everything but the choice of FSDP is accelerate's own path: its plugin, its wrapping, its gathering of weights.
"""

from __future__ import annotations

import os
from typing import Any

import accelerate
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType

from mmedge.cli import main
from mmedge.distill import devices


class ShardingAccelerator(accelerate.Accelerator):  # type: ignore[misc]
    """An accelerator whose state says FSDP; each new view of the state resets it, so it is said again where it matters."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._plugin = FullyShardedDataParallelPlugin(
            fsdp_version=int(os.environ.get("FSDP_VERSION", "2")),  # accelerate's own variable
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["T5Block"],
            cpu_ram_efficient_loading=False,
        )
        self._shard()

    def _shard(self) -> None:
        shared = type(self.state)._shared_state
        shared |= {"distributed_type": DistributedType.FSDP, "fsdp_plugin": self._plugin}
        self.state.__dict__.update(shared)

    def prepare(self, *args: Any, **kwargs: Any) -> Any:
        self._shard()
        return super().prepare(*args, **kwargs)

    def get_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self._shard()
        return super().get_state_dict(*args, **kwargs)


if __name__ == "__main__":
    vars(devices)["Accelerator"] = ShardingAccelerator  # the name by which `Devices` finds it
    main()
