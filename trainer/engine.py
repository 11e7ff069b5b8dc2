"""A DeepSpeed ZeRO engine for one stage, built from a checkpoint. All use of DeepSpeed, and of its private attributes, is here.

Why a new engine for every stage: ZeRO-1/2 fix the trainable set when the engine is made. A parameter unfrozen later never
trains, one frozen later still moves, and neither is reported. So a stage ends in a checkpoint and the next engine is built
from it: fp32 masters and Adam moments go into the slices of the partition that this rank owns, frozen parameters come from
the checkpoint's fp32 values and not from the low-precision copy of the last engine.
"""

import gc
import logging
import os
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import logger as deepspeed_logger
from transformers import PreTrainedModel

from data_tools.errors import UserError
from trainer import accelerator, lifeline
from trainer.blocks import MaskedBatch
from trainer.checkpoint import Checkpoint, Entry
from trainer.ds_config import DeepSpeedConfig, fitting_buckets
from trainer.gradients import Gradients, squared_norm
from trainer.mlm import MaskedLanguageModel, build_model
from trainer.recipe import Optimizer
from trainer.shared_memory import shared_rows
from trainer.stages import parameter_groups
from trainer.traffic import Traffic

TESTED_DEEPSPEED = "0.19.8"
_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")  # what changes in a dynamic loss scaler; all else are settings
_GIVES_UP = "raise_error_at_min_scale"  # of DeepSpeed's fp16 loss scaler, with a bare Exception; recipe.max_skipped says when to


def start(timeout_minutes: float = 30) -> None:
    """Make the process group (NCCL or gloo)."""
    if deepspeed.__version__.split("+")[0] != TESTED_DEEPSPEED:
        raise UserError(
            f"DeepSpeed {deepspeed.__version__} is installed; stage changes read private state, tested with {TESTED_DEEPSPEED} only: "
            f"pip install deepspeed=={TESTED_DEEPSPEED}"
        )
    deepspeed_logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed calls older names
    # Its shared-memory all-reduce for CPUs is compiled at first use, for minutes; gloo needs no compiler.
    if not accelerator.is_gpu():  # there it is not asked for, and the question alone runs compilers
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    accelerator.let_us_speak()
    try:
        with lifeline.arriving():
            deepspeed.init_distributed(verbose=False, timeout=timedelta(minutes=timeout_minutes))
    except ImportError as error:  # started by mpirun, where mpi4py says who we are
        raise UserError(
            f"mpi4py does not find the MPI library ({error}); set MPI4PY_LIBMPI to the libmpi.so of the mpirun that started this, "
            "or MPI4PY_MPIABI to openmpi or mpich"
        ) from None
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise UserError(
            f"MASTER_PORT {os.environ.get('MASTER_PORT')}: taken, perhaps by another run on this host; "
            "give the launcher another --master_port"
        ) from None


class StageEngine:
    """One stage's model, masters and optimizer, partitioned over the ranks."""

    def __init__(
        self, checkpoint: Checkpoint, train: set[str], config: DeepSpeedConfig, optimizer: Optimizer, dropout: float,
        global_batch: int, device: torch.device, fresh_moments: bool = False,
    ) -> None:  # fmt: skip
        """Build from `checkpoint` with exactly `train` trainable. Collective.

        fresh_moments: forget the checkpoint's Adam moments and step counts (of parameters that train here).
        """
        self.device, self.world_size = device, dist.get_world_size()
        self.accumulation = config.accumulation(global_batch, self.world_size)
        model = build_model(checkpoint.state["model_config"], dropout, device, config.dtype)
        self.parameters: dict[str, Any] = dict(model.named_parameters())
        if set(self.parameters) != set(checkpoint.parameters):
            different = sorted(set(self.parameters) ^ set(checkpoint.parameters))
            raise UserError(
                f"checkpoint {checkpoint.path}: its parameters are not this model's; {len(different)} differ, e.g. {different[0]}"
            )
        for name, value, _ in checkpoint.entries(self.parameters):
            self.parameters[name].data.copy_(value)
            self.parameters[name].requires_grad_(name in train)
        adam_steps = {} if fresh_moments else checkpoint.adam_steps
        self._groups = parameter_groups(checkpoint.shapes, train, adam_steps, optimizer)
        self._engine = self._initialize(model, config, optimizer)
        self._name_of = {id(parameter): name for name, parameter in self.parameters.items()}
        self._check_layout()
        self._load_state(checkpoint, forget=fresh_moments)
        self.check_trainable(train)
        self._frozen_sum = self.frozen_checksum()
        self._pending = 0
        self._ungraded = waiting = set(train)  # until their first gradient
        self._watches = [
            self.parameters[name].register_post_accumulate_grad_hook(lambda _, name=name: waiting.discard(name)) for name in sorted(train)
        ]
        self._weights: list[list[torch.Tensor]] | None = None  # every rank's part of each group's, when all are on one host
        self._gradients = self._own_gradients() if config.sums_gradients(device, self.accumulation) else None
        self.traffic = Traffic()

    def _initialize(self, model: PreTrainedModel, config: DeepSpeedConfig, optimizer: Optimizer) -> Any:
        groups = [
            {"params": [self.parameters[name] for name in group.names], "weight_decay": group.weight_decay, "lr": 0.0}
            for group in self._groups
        ]
        adamw = torch.optim.AdamW(groups, lr=0.0, betas=(optimizer.beta1, optimizer.beta2), eps=optimizer.eps, fused=True)
        settings = {
            **config.settings,
            "zero_optimization": fitting_buckets(
                config.settings["zero_optimization"], [p.numel() for p in model.parameters() if p.requires_grad]
            ),
            "gradient_accumulation_steps": self.accumulation,
            "gradient_clipping": optimizer.gradient_clipping,
            "data_types": {"grad_accum_dtype": "fp32"},  # where DeepSpeed adds gradients; in 16 bits ranks would round their sums
            "communication_data_type": "fp32",
            "gradient_allreduce_op": "sum",  # a mean would be rounded in 16 bits before it is sent
            "steps_per_print": None,
            "timers": {"throughput": {"enabled": False}},  # it waits for the GPU twice a step
        }
        if config.compiles and self.device.type == "cuda":  # fixed shapes; the head's change with every batch. Not run on a GPU
            model.base_model.compile(dynamic=False)  # validation's batches are of another size: a graph for each
        engine, *_ = deepspeed.initialize(model=MaskedLanguageModel(model), optimizer=adamw, config=settings, dist_init_required=False)
        if hasattr(engine.optimizer.loss_scaler, _GIVES_UP):
            setattr(engine.optimizer.loss_scaler, _GIVES_UP, False)
        return engine

    def _check_layout(self) -> None:
        """The flat groups hold their parameters one after the other, in order: `_owners` and Gradients count on it."""
        for laid_out, paddings, group in zip(
            self._zero.round_robin_bit16_groups, self._zero.round_robin_bit16_padding, self._zero.bit16_groups, strict=True
        ):
            if any(paddings) or any(one is not other for one, other in zip(laid_out, group, strict=True)):
                raise RuntimeError("DeepSpeed lays parameters out in another order than their own")

    def _own_gradients(self) -> Gradients:
        """Sums of our own in place of DeepSpeed's: its hooks would reduce every micro-batch."""
        for hook in self._zero._grad_acc_hooks:
            hook.remove()
        if self.device.type == "cpu" and self.world_size > 1:
            self._weights = shared_rows(self._zero.partition_size, self._zero.bit16_groups_flat[0].dtype)
        return Gradients(self._zero.bit16_groups, self._zero.partition_size, self._zero.reduce_bucket_size)

    @property
    def _zero(self) -> Any:
        """DeepSpeedZeroOptimizer; its `.optimizer` is our AdamW over this rank's flat partitions, one per group."""
        return self._engine.optimizer

    def _state_of(self, group: int) -> dict[str, torch.Tensor]:
        return self._zero.optimizer.state[self._zero.single_partition_of_fp32_groups[group]]

    def _load_state(self, checkpoint: Checkpoint, forget: bool) -> None:
        """Masters and moments from the checkpoint into the slices of the partition that this rank owns."""
        for index, group in enumerate(self._groups):
            flat = self._zero.single_partition_of_fp32_groups[index]
            self._zero.optimizer.state[flat] = {
                "step": torch.tensor(float(group.adam_step), dtype=torch.float32, device=flat.device),
                "exp_avg": torch.zeros_like(flat),
                "exp_avg_sq": torch.zeros_like(flat),
            }
        for name, value, moments in checkpoint.entries(name for group in self._groups for name in group.names):
            for own, whole in zip(self._slices(name), (value, *(moments if moments and not forget else ())), strict=False):
                mapping = self.parameters[name]._hp_mapping
                address = mapping.lp_fragment_address
                own.copy_(whole.reshape(-1)[address.start : address.start + address.numel])
        self._zero.update_lp_params()

    def _slices(self, name: str) -> tuple[torch.Tensor, ...]:
        """This rank's slices of a parameter's fp32 master, exp_avg and exp_avg_sq, as views; nothing when it owns none of it."""
        mapping = self.parameters[name]._hp_mapping
        if mapping is None:
            return ()
        address, state = mapping.hp_fragment_address, self._state_of(mapping.param_group_index)
        flats = (self._zero.single_partition_of_fp32_groups[mapping.param_group_index].detach(), state["exp_avg"], state["exp_avg_sq"])
        return tuple(flat.narrow(0, address.start, address.numel) for flat in flats)

    # -- training ---------------------------------------------------------------------------------------------------

    def backward(self, batch: MaskedBatch, num_selected_global: float) -> torch.Tensor:
        """Forward and backward of one micro-batch; the last of an accumulation also takes the optimizer step.

        The loss is divided by the number of selected tokens of the whole global batch, whichever rank they fall on. Returns the summed
        cross-entropy, detached.
        """
        loss: torch.Tensor = self._engine.module.loss(batch, self.device)
        if self._gradients is None:
            self._engine.backward(loss / num_selected_global, scale_wrt_gas=False)
            self._check_gradients(batch)
            self._engine.step()
            return loss.detach()
        (loss * (self._zero.loss_scale / num_selected_global)).backward()
        self._check_gradients(batch)
        self._pending = (self._pending + 1) % self.accumulation
        if not self._pending:
            self._step(*self._gradients.reduce())
        return loss.detach()

    def _step(self, partitions: list[torch.Tensor], sent: int) -> None:
        """What DeepSpeed's step does with its own gradients: clips to the norm over all ranks, takes AdamW's step on this rank's masters,
        spreads the new weights. partitions: of the gradient, one for each group, times the loss scale."""
        zero, masters = self._zero, self._zero.single_partition_of_fp32_groups
        self.traffic.add(sent)
        squares = torch.stack([squared_norm(part) for part in partitions]).sum()
        dist.all_reduce(squares)
        scale, norm = zero.loss_scale, squares.sqrt() / zero.loss_scale
        zero.overflow = not bool(norm.isfinite())
        zero._update_scale(zero.overflow)
        zero._global_grad_norm = norm
        if zero.overflow:
            return
        largest = zero.clip_grad
        zero.optimizer.grad_scale = scale * ((norm + 1e-6) / largest).clamp(min=1) if largest else scale * torch.ones_like(norm)
        for master, part in zip(masters, partitions, strict=True):
            master.grad = part
        zero.optimizer.step()  # the fused AdamW divides by grad_scale on its way
        for master in masters:
            master.grad = None
        if self._weights is None and self.world_size > 1:
            zero.update_lp_params()
            return
        # Nobody to gather from, or all on one host: no network.
        rows = self._weights or zero.parallel_partitioned_bit16_groups
        for row, master in zip(rows, masters, strict=True):
            row[dist.get_rank()].data.copy_(master.data)
        if self._weights:
            dist.barrier()
            for flat, row in zip(zero.bit16_groups_flat, self._weights, strict=True):
                torch.cat(row, out=flat.data)

    def describe(self) -> str:
        """Which of the ways to compute are taken here, for people."""
        passes = "ours" if self._engine.module.written_out else "transformers'"
        sums = "DeepSpeed" if self._gradients is None else "shared memory" if self._gradients.shared else "the network"
        return f"on {self.device.type}, passes {passes}" + (f", gradients summed by {sums}" if self.world_size > 1 else "")

    def set_learning_rate(self, rate: float) -> None:
        """For the next optimizer step."""
        for group in self._zero.optimizer.param_groups:
            group["lr"] = rate

    @property
    def gradient_norm(self) -> float:
        """Global L2 norm of the last step's gradient, before clipping."""
        return float(self._zero._global_grad_norm)

    @property
    def skipped(self) -> bool:
        """Whether the last step was left out because a gradient was not finite."""
        return bool(self._zero.overflow)

    @torch.no_grad()
    def evaluate(self, batch: MaskedBatch) -> torch.Tensor:
        """Summed cross-entropy without dropout."""
        self._engine.module.eval()
        loss = self._engine.module.loss(batch, self.device)
        self._engine.module.train()
        return loss

    # -- watchdogs ---------------------------------------------------------------------------------------------------

    def check_trainable(self, train: set[str]) -> None:
        """The set in the engine, the set that requires gradients and the set that the stage names are one."""
        inside = {self._name_of[id(p)] for group in self._zero.bit16_groups for p in group}
        asking = {name for name, p in self.parameters.items() if p.requires_grad}
        if not inside == asking == train:
            odd = sorted((inside ^ train) | (asking ^ train))
            raise RuntimeError(f"the engine does not train what the stage names: {odd[:5]}")

    def _check_gradients(self, batch: MaskedBatch) -> None:
        """After the first backward pass of a batch that asks for something: it reached every parameter that trains."""
        if not self._watches or not len(batch.labels):
            return
        for watch in self._watches:
            watch.remove()
        self._watches = []
        if self._ungraded:
            raise RuntimeError(f"no gradient reaches what the stage trains: {sorted(self._ungraded)[:5]}")

    def frozen_checksum(self) -> int:
        """Sum over the frozen parameters' bits."""
        integers = {2: torch.int16, 4: torch.int32}
        frozen = [p.data for p in self.parameters.values() if not p.requires_grad]
        return sum(int(p.view(integers[p.element_size()]).sum(dtype=torch.int64)) for p in frozen)

    def check_frozen(self) -> None:
        """No frozen parameter moved or holds a gradient."""
        holding = [name for name, p in self.parameters.items() if not p.requires_grad and p.grad is not None]
        if holding or self.frozen_checksum() != self._frozen_sum:
            raise RuntimeError(f"frozen parameters changed or hold gradients: {holding[:5]}")

    # -- state out ---------------------------------------------------------------------------------------------------

    @property
    def adam_steps(self) -> dict[str, int]:
        """Adam steps behind each parameter that trains here."""
        counts = [int(self._state_of(index)["step"]) for index in range(len(self._groups))]
        return {name: count for group, count in zip(self._groups, counts, strict=True) for name in group.names}

    @property
    def loss_scaler(self) -> dict[str, Any]:
        """State of fp16's dynamic loss scaler; empty in other precisions, and of a scale that does not change."""
        scaler = vars(self._zero.loss_scaler)
        return {key: scaler[key] for key in _SCALE} if self._zero.dynamic_loss_scale else {}

    def load_loss_scaler(self, state: dict[str, Any]) -> None:
        """Put `loss_scaler` back. The settings are the ds_config's, even if an older checkpoint stored different ones."""
        if self._zero.dynamic_loss_scale:
            vars(self._zero.loss_scaler).update({key: value for key, value in state.items() if key in _SCALE})

    def _owners(self) -> dict[str, range]:
        """The ranks that hold a part of each trained parameter; the first is its owner and writes it."""
        result = {}
        for index, group in enumerate(self._groups):
            offset, size = 0, self._zero.partition_size[index]
            for name in group.names:
                end = offset + self.parameters[name].numel()
                result[name] = range(offset // size, (end - 1) // size + 1)
                offset = end
        return result

    def owned(self) -> list[str]:
        """Names of the parameters that this rank writes into a checkpoint."""
        return [name for name, ranks in self._owners().items() if ranks[0] == dist.get_rank()]

    def owned_entries(self) -> Iterator[Entry]:
        """The owned parameters, whole, in the order of `owned`. The call is collective: parts on other ranks are sent to their owner."""
        received: dict[str, list[torch.Tensor]] = {}
        me = dist.get_rank()
        for name, ranks in self._owners().items():
            if len(ranks) > 1 and me in ranks:
                part = torch.stack(self._slices(name))  # (3, elements here)
                if me != ranks[0]:
                    dist.send(torch.tensor([part.shape[1]], device=self.device), ranks[0])
                    dist.send(part, ranks[0])
                    continue
                received[name] = [part]
                for other in ranks[1:]:
                    size = torch.zeros(1, dtype=torch.int64, device=self.device)
                    dist.recv(size, other)
                    received[name].append(torch.empty(3, int(size), device=self.device))
                    dist.recv(received[name][-1], other)
        return self._whole(received)

    def _whole(self, received: dict[str, list[torch.Tensor]]) -> Iterator[Entry]:
        for name in self.owned():
            shape = self.parameters[name].shape
            whole = torch.cat(received.pop(name), dim=1) if name in received else self._slices(name)
            value, exp_avg, exp_avg_sq = (part.reshape(shape) for part in whole)
            yield name, value, (exp_avg, exp_avg_sq)

    def close(self) -> None:
        """Free everything. `destroy` leaves hooks on the module that keep masters and moments alive: engine and module go together, so that
        the collector below takes the whole circle."""
        self.traffic.close()
        if self._gradients:
            self._gradients.close()
            self._gradients, self._weights = None, None
        engine, self._engine = self._engine, None
        engine.destroy()
        self.parameters, self._name_of = {}, {}
        del engine
        gc.collect()
        if self.device.type == "cuda":
            torch.compiler.reset()  # its graphs, of which it makes no more than 8, were of this stage's parameters; not run on a GPU
            torch.cuda.empty_cache()
