"""Typed, frozen configuration: the single source of defaults, types, bounds and units.

Defaults are the published LeWM configuration (arXiv 2603.19312 and its code, where they disagree the
code); profiles and sweeps only override them. Imports no torch, so `--dry-run` stays instant.

Sections: `model`, `loss`, `pldm`, `dino`, `data`, `optim` and `seed` decide the trained weights and are hashed into a
trial's identity. `run` (device, intervals) decides where and how it runs, never the result. `latents`,
`planning`, `probing`, `surprise`, `examples`, `timing` and `reconstruction` configure evaluation and are
hashed into a cell's identity.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
CompileMode = Literal["off", "default", "reduce-overhead"]
"""Of `torch.compile`, which needs a C++ compiler; `reduce-overhead` replays CUDA graphs."""


class Frozen(BaseModel):
    """Base of every section: immutable, no unknown keys, defaults checked too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, strict=True)


class ModelConfig(Frozen):
    """Architecture (paper Table of App. A and the released `config.json`)."""

    encoder: Literal["vit", "resnet18"] = "vit"
    """`resnet18` reads `image_size` and `resnet_channels`, nothing else of the encoder's sizes."""
    resnet_channels: Count = 64
    """Of ResNet-18's first stage; 64 is the standard network."""
    image_size: Annotated[int, Field(ge=8, le=1024)] = 224
    """Pixels per side of the square input."""
    patch_size: Count = 14
    """Pixels per side of a patch; divides `image_size`."""
    width: Count = 192
    """Encoder width."""
    depth: Count = 12
    heads: Count = 3
    mlp: Count = 768
    latent_dim: Count = 192
    """D, the width of embeddings and of the predictor."""
    projector_hidden: Count = 2048
    predictor_depth: Count = 6
    predictor_heads: Count = 16
    predictor_head_dim: Count = 64
    predictor_mlp: Count = 2048
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Predictor dropout (attention output and MLP)."""
    history: Count = 3
    """N, context frames of the predictor; clips have N + 1 frames."""
    action_hidden: Count = 10
    """Channels of the action encoder's pointwise convolution."""
    action_mlp_ratio: Count = 4

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class LossConfig(Frozen):
    """L = L_pred + lam * SIGReg (paper Eq. 1-3; quadrature as in the authors' code)."""

    lam: NonNegative = 0.09
    """λ, the weight of SIGReg; tied to `optim.batch_size`, because the statistic carries a factor B."""
    num_directions: Count = 1024
    """M, random unit directions, redrawn every step."""
    num_knots: Annotated[int, Field(ge=2)] = 17
    knot_max: Positive = 3.0
    reconstruction: NonNegative = 0.0
    """Weight of drawing every frame from its embedding (`decoder`): mean squared error of normalised pixels
    (paper Table 7); at 0 there is no decoder. LeWM only."""


class PLDMConfig(Frozen):
    """L = L_pred + six weighted terms (facts §8.1); defaults are those of LeWM's comparison (Table 2)."""

    variance: NonNegative = 18.0
    """α, of the hinge on the standard deviation over the batch."""
    covariance: NonNegative = 12.0
    """β, of squared covariances between dimensions over the batch."""
    time_similarity: NonNegative = 0.2
    """γ, of the squared step between consecutive embeddings."""
    time_variance: NonNegative = 0.7
    """ζ, of the hinge on the standard deviation over the time of a clip."""
    time_covariance: NonNegative = 0.0
    """ν, of squared covariances over the time of a clip."""
    inverse_dynamics: NonNegative = 0.0
    """μ, of reading the action off two consecutive embeddings."""
    inverse_hidden: Count = 512
    """Width of the network that reads the action."""


class DinoConfig(Frozen):
    """DINO-WM (facts §8.2): a predictor of frozen DINOv2 patch tokens; defaults are the published sizes."""

    predictor_depth: Count = 6
    predictor_heads: Count = 16
    predictor_head_dim: Count = 64
    predictor_mlp: Count = 2048
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Of the predictor (attention and MLP)."""
    action_embed: Count = 10
    """Channels that an action block adds to every token."""
    proprio: bool = False
    """Whether proprioception is seen, predicted and planned with; LeWM's paper leaves it out unless said."""
    proprio_embed: Count = 10
    """Channels that proprioception adds to every token."""
    proprio_weight: NonNegative = 1.0
    """α, of the proprioceptive part of the planning cost."""
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Of the DINOv2 weights that must be used; None takes what has the names and shapes of ViT-S/14. Part of
    a trial's identity, as the path is not: set it where weights other than the published ones are used."""


class DecoderConfig(Frozen):
    """The decoder from an embedding to a frame (facts §7): sizes of the author's public sketch."""

    width: Count = 256
    depth: Count = 3


class DataConfig(Frozen):
    """What is learnt from, and how it is cut into clips."""

    env: str = "two_room"
    policy: str = "expert"
    """Behaviour policy of collected data (`make_behaviour`)."""
    num_episodes: Count = 10_000
    max_steps: Annotated[int, Field(ge=20)] = 100
    """Longest collected episode, in environment steps."""
    collect_seed: Seed = 3072
    dataset: str | None = None
    """A named dataset file instead of a collected one."""
    frame_size: Annotated[int, Field(ge=8, le=1024)] | None = None
    """Pixels per side of stored and drawn frames, which the device resizes to `model.image_size`; None:
    they have that size already."""
    render_quality: Literal["exact", "fast"] = "exact"
    """`fast` leaves out what software rendering is slow at (MuJoCo worlds: shadows, antialiasing)."""
    action_block: Count = 5
    """Environment steps between the frames of a clip; their actions form one block."""
    split: Literal["episode", "clip"] = "episode"
    """`clip` is the publication's split: train and validation clips overlap."""
    split_seed: Seed = 3072
    holdout_frac: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    shuffle: Literal["full", "block"] = "full"
    """`block` changes the order of clips: only those of 32 blocks of 100 rows are mixed with each other.
    It reads a file with many frames per chunk (the published ones) many times faster than `full`."""


class OptimConfig(Frozen):
    """AdamW, linear warm-up from 0, cosine to 0 per step, gradient-norm clip."""

    lr: Positive = 5e-5
    weight_decay: NonNegative = 1e-3
    warmup_frac: Fraction = 0.01
    batch_size: Annotated[int, Field(ge=2)] = 128
    num_epochs: Count | None = 10
    num_steps: Count | None = None
    """Optimiser steps; exactly one of `num_epochs` and `num_steps` is set."""
    grad_clip: Positive = 1.0
    precision: Literal["fp32", "bf16"] = "bf16"
    compile: CompileMode = "off"
    """The loss by `torch.compile`, whose kernels round otherwise than torch's own."""
    num_threads: Count = 4
    """CPU threads of torch, and the CPUs a trial asks Ray for; part of the bits."""
    eval_every: Count = 500
    """Steps between measurements of `val_pred_loss` and `mean_std`."""
    num_val_clips: Count = 512

    @model_validator(mode="after")
    def _check(self) -> "OptimConfig":
        if (self.num_epochs is None) == (self.num_steps is None):
            raise ValueError("set exactly one of optim.num_epochs and optim.num_steps")
        return self


class RunConfig(Frozen):
    """How a trial runs; never part of its identity, never changes a bit of its result."""

    device: str = "auto"
    """`auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1` ..."""
    checkpoint_every: Count = 500
    """Steps between checkpoints: what a killed process can lose."""
    pixels_in_memory_gb: NonNegative = 1.0
    """Training frames are decoded into memory once if they fit into this many GB."""
    loader_threads: Annotated[int, Field(ge=0)] = 2
    """Threads that read batches ahead of an accelerator; a CPU reads its own."""
    dino_weights: str | None = None
    """Path of `dinov2_vits14_pretrain.pth`; None, or a path that is not there: the environment variable
    LEWM_DINOV2_WEIGHTS says."""
    dino_cache_gb: NonNegative = 4.0
    """DINOv2's tokens of a data file are kept on disk if they fit into this many GB, else made anew for
    every batch, to the same bits."""
    dino_cache: str | None = None
    """Folder of the kept tokens; None: LEWM_DINOV2_CACHE, or ~/.cache/lewm/dinov2."""


class LatentsConfig(Frozen):
    """Health of the latent space on held-out frames."""

    num_clips: Count = 256
    collapse_std: Positive = 0.02
    """`collapsed` when the mean per-dimension std of the projected embedding is below this, of the 1 that
    SIGReg and PLDM's variance term aim for. Of 94 recorded runs (docs/tuning.md) those that plan no better
    than random have 0.0016 at most, and runs at 0.066 still plan well; effective rank is scale-free and
    does not see collapse."""

    @model_validator(mode="before")
    @classmethod
    def _without_retired(cls, data: Any) -> Any:
        """Stored configs may name a second threshold, on the distance to N(0, 1): other methods than LeWM
        are far from normal and plan well, so it is gone."""
        if isinstance(data, dict):
            return {k: v for k, v in data.items() if k != "collapse_epps_pulley"}
        return data


class PlanningConfig(Frozen):
    """Closed-loop planning (paper §4.1; facts §4).

    `num_samples`, `num_elites` and `num_iterations` are the budget of the planners that sample; what only
    one planner reads begins with its name.
    """

    planner: str = "cem"
    """`cem`, `icem`, `mppi`, `gradient`, or one that needs no model: `random`, `zero`."""
    protocols: tuple[str, ...] = ("paper", "strict")
    eval_seeds: tuple[Seed, ...] = (42,)
    num_pairs: Count = 100
    """Start/goal pairs, each one episode, per protocol and eval seed."""
    num_samples: Count = 300
    num_elites: Annotated[int, Field(ge=2)] = 30
    num_iterations: Count = 30
    horizon: Count = 5
    """Planned action blocks."""
    execute: Count = 5
    """Blocks executed before planning again (5 of 5: the whole plan)."""
    history: Count | None = None
    """Context frames at planning time; None: as many as the protocol says."""
    chunk: Count = 10
    """Episodes planned together; fixed and padded, so it never depends on their number."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the model that prices plans; distances are taken in fp32."""
    compile: CompileMode = "off"
    """The cost by `torch.compile`, whose kernels round otherwise than torch's own."""
    icem_beta: NonNegative = 2.0
    """Exponent of the noise's power spectrum f^-beta over the plan's blocks; 0 is white."""
    icem_keep_frac: Fraction = 0.3
    """Share of the elites that compete again in the next iteration."""
    icem_decay: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] = 1.25
    """Samples shrink by this factor per iteration, down to twice the elites."""
    icem_momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of the old mean and standard deviation in the new ones."""
    mppi_temperature: Positive = 10.0
    """In units of the cost; samples weigh exp(-cost / temperature). Neither paper nor released code plan
    with MPPI; 5 to 50 did as well as CEM on Two-Room models with 64 latent dimensions, 0.5 and 100 worse."""
    mppi_std: Positive = 1.0
    """Standard deviation of the samples around the mean, in z-scored units, never adapted."""
    gradient_optimiser: Literal["adam", "sgd", "rmsprop"] = "adam"
    """The three of the paper's Table 10."""
    gradient_num_starts: Count = 100
    """Initial plans descended from in parallel, the first of them zero (instead of `num_samples`)."""
    gradient_num_steps: Count = 30
    """Steps of descent (instead of `num_iterations`)."""
    gradient_lr: Positive = 0.1
    """In z-scored units: with Adam and RMSProp a number of a plan moves by about this much per step; with
    SGD by this times its slope, in units of the cost."""

    @model_validator(mode="after")
    def _check(self) -> "PlanningConfig":
        if self.num_elites > self.num_samples:
            raise ValueError(
                f"planning.num_elites {self.num_elites} is above planning.num_samples {self.num_samples}"
            )
        if self.execute > self.horizon:
            raise ValueError(
                f"planning.execute {self.execute} is above planning.horizon {self.horizon}"
            )
        for name in ("protocols", "eval_seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"planning.{name} must be non-empty without duplicates: {values}")
        return self


class ProbingConfig(Frozen):
    """Linear (ridge) and MLP probes on frozen latents to physical quantities (paper App. F.2)."""

    num_train: Count = 2000
    """Frames of the train split used to fit a probe."""
    num_test: Count = 1000
    """Held-out frames a probe is judged on."""
    ridge: NonNegative = 1.0
    mlp_hidden: Count = 256
    mlp_steps: Count = 1000
    mlp_lr: Positive = 1e-3
    mlp_batch: Count = 256


class SurpriseConfig(Frozen):
    """Violation of expectation (paper App. F.3): perturbed clip against the same clip unperturbed."""

    num_clips: Count = 64
    event_frame: Count = 3
    """Frame of the clip at which the event strikes; later frames stay perturbed."""


class ReconstructionConfig(Frozen):
    """Frames drawn from frozen embeddings by a decoder fitted to them, seen and imagined.

    How the publication fitted its decoder is unknown (facts §11).
    """

    num_train: Count = 4000
    """Frames of the train split that the decoder is fitted on."""
    num_steps: Count = 3000
    batch_size: Count = 64
    lr: Positive = 1e-3
    num_clips: Count = 64
    """Held-out clips it is judged on."""
    horizon: Count = 5
    """Frames imagined after the context, open loop: as many as a plan has blocks."""
    num_pictures: Annotated[int, Field(ge=0)] = 3
    """Clips whose pictures are kept: the first of the draw, whatever they show."""


class TimingConfig(Frozen):
    """Seconds per plan, side by side (paper Fig. 3); samples, iterations and horizon are those of `planning`."""

    settings: tuple[Literal["samples", "flops"], ...] = ("samples", "flops")
    """The same samples for every method; samples for the operations that LeWM's plan takes."""
    repetitions: Annotated[int, Field(ge=2)] = 10
    batch: Count = 1
    """Plans made together."""
    samples: Count | None = None
    """Of a plan's samples those really run, the time scaled by their number; None: all."""
    iterations: Count | None = None
    """Likewise of its iterations."""
    dtype: Literal["fp32", "bf16"] = "fp32"


class ExamplesConfig(Frozen):
    """Pictures of planned episodes, for the report."""

    num_pairs: Count = 3
    """The first pairs of the last protocol's manifest: chosen before anything is known of them."""


class Config(Frozen):
    """Everything about one trial and its evaluation, fully resolved."""

    method: str = "lewm"
    seed: Seed = 0
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    pldm: PLDMConfig = PLDMConfig()
    dino: DinoConfig = DinoConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()
    latents: LatentsConfig = LatentsConfig()
    planning: PlanningConfig = PlanningConfig()
    probing: ProbingConfig = ProbingConfig()
    surprise: SurpriseConfig = SurpriseConfig()
    examples: ExamplesConfig = ExamplesConfig()
    timing: TimingConfig = TimingConfig()
    decoder: DecoderConfig = DecoderConfig()
    reconstruction: ReconstructionConfig = ReconstructionConfig()

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.method == "dino_wm":
            check_dino(self)
        if self.loss.reconstruction > 0 and self.method != "lewm":
            raise ValueError(
                f"loss.reconstruction {self.loss.reconstruction:g} is a term of lewm's loss; method "
                f"{self.method!r} has none: set it to 0"
            )
        return self

    @property
    def frame_size(self) -> int:
        """Pixels per side of frames as they are stored and drawn; the model sees `model.image_size`."""
        return self.data.frame_size or self.model.image_size

    @property
    def lam(self) -> float | None:
        """λ, if the method has one."""
        return self.loss.lam if "loss" in OBJECTIVES.get(self.method, ()) else None


OBJECTIVES = {"lewm": ("loss", "decoder"), "pldm": ("pldm",), "dino_wm": ("dino",)}
"""Sections that only some methods read: to the others' trials they are no identity."""


DINO_PATCH = 14
"""Pixels per side of a patch of DINOv2."""


def check_dino(config: Config) -> None:
    """Refuses what DINO-WM cannot take.

    Raises:
        ValueError: frames that are no whole number of patches, or proprioception where there is none.
    """
    size = config.model.image_size
    if size % DINO_PATCH:
        low = max(size // DINO_PATCH, 1) * DINO_PATCH
        raise ValueError(
            f"model.image_size {size} is not a multiple of {DINO_PATCH}, the patch of DINOv2 that dino_wm "
            f"sees with; nearest: {low} or {low + DINO_PATCH}"
        )
    if config.dino.proprio:
        from lewm.envs import env_class

        if not env_class(config.data.env).proprio:
            raise ValueError(
                f"dino.proprio: environment {config.data.env!r} has no proprioception; "
                "set it to false, or choose an environment whose data have columns proprio*"
            )
