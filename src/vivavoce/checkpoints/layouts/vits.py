"""Published layouts of VITS: the authors' files, transformers' VitsModel (MMS voices), and Piper's ONNX graphs.

The three hold the same network under other names, so one builder writes the rows and a :class:`Names` value tells the
spellings. Piper's graphs lack what only training needs; their weight-normed convolutions are folded, without names of
their own, and are read under the path of the node that uses them.
"""

from __future__ import annotations

from dataclasses import dataclass

from vivavoce.checkpoints.layouts.hifigan import generator_rows
from vivavoce.checkpoints.rules import Chain, Join, Layout, NegativeLog, Operation, Row, Same, Squeeze, WeightNorm


@dataclass(frozen=True)
class Names:
    """How one layout spells what the others spell otherwise; ``pointwise`` reads the weights of its attention."""

    embedding: str
    text: str
    layer: str
    attention_norm: str
    ffn_norm: str
    ffn: str
    query: str
    key: str
    value: str
    out: str
    scale: str
    shift: str
    pointwise: Operation
    prior: str
    posterior: str
    posterior_proj: str
    flow: str
    pre: str
    wavenet: str
    post: str
    duration: str
    duration_proj: str
    stack: str
    depthwise: str
    shape: str
    affine_shift: str
    affine_scale: str
    first_flow: str
    later_flow: str
    duration_posterior_flow: str
    duration_posterior_pre: str
    duration_posterior_stack: str
    duration_posterior_proj: str
    speakers: str
    weight_norm: str


def _plain(theirs: str, ours: str, *, optional: bool = True) -> tuple[Row, ...]:
    return (Row(f"{theirs}.{{w}}", f"{ours}.{{w}}", optional=optional),)


def _pointwise(theirs: str, ours: str, operation: Operation | None = None, *, optional: bool = True) -> tuple[Row, ...]:
    """A convolution of kernel 1 that is a linear layer of ours."""
    return (
        Row(f"{theirs}.weight", f"{ours}.weight", operation or Squeeze(-1), optional=optional),
        Row(f"{theirs}.bias", f"{ours}.bias", optional=optional),
    )


def _norm(names: Names, theirs: str, ours: str) -> tuple[Row, ...]:
    return (
        Row(f"{theirs}.{names.scale}", f"{ours}.weight", optional=True),
        Row(f"{theirs}.{names.shift}", f"{ours}.bias", optional=True),
    )


def _text_rows(n: Names) -> tuple[Row, ...]:
    layer, ours = f"{n.text}.encoder", "text_encoder.layers.{i}"
    attention = f"{layer}.{n.layer}"
    qkv = tuple(f"{attention}.{part}" for part in (n.query, n.key, n.value))
    return (
        Row(n.embedding, "text_encoder.embedding.weight"),
        Row(tuple(f"{p}.weight" for p in qkv), f"{ours}.attention.qkv.weight", Chain(n.pointwise, Join(0))),
        Row(tuple(f"{p}.bias" for p in qkv), f"{ours}.attention.qkv.bias", Join(0)),
        Row(f"{attention}.{n.out}.weight", f"{ours}.attention.out.weight", n.pointwise),
        Row(f"{attention}.{n.out}.bias", f"{ours}.attention.out.bias"),
        Row(f"{attention}.emb_rel_k", f"{ours}.attention.relative_keys", Squeeze(0)),
        Row(f"{attention}.emb_rel_v", f"{ours}.attention.relative_values", Squeeze(0)),
        *_norm(n, f"{layer}.{n.attention_norm}", f"{ours}.attention_norm"),
        *_norm(n, f"{layer}.{n.ffn_norm}", f"{ours}.ffn_norm"),
        *_plain(f"{layer}.{n.ffn}.conv_1", f"{ours}.up"),
        *_plain(f"{layer}.{n.ffn}.conv_2", f"{ours}.down"),
        *_pointwise(f"{n.text}.{n.prior}", "text_encoder.prior"),
    )


def _wavenet_rows(theirs: str, ours: str, writes: str) -> tuple[Row, ...]:
    return (
        Row(f"{theirs}.in_layers.{{j}}.weight", f"{ours}.gates.{{j}}.weight", WeightNorm(writes=writes)),
        Row(f"{theirs}.in_layers.{{j}}.bias", f"{ours}.gates.{{j}}.bias"),
        Row(f"{theirs}.res_skip_layers.{{j}}.weight", f"{ours}.outputs.{{j}}.weight", WeightNorm(writes=writes)),
        Row(f"{theirs}.res_skip_layers.{{j}}.bias", f"{ours}.outputs.{{j}}.bias"),
        *_pointwise(f"{theirs}.cond_layer", f"{ours}.speaker", Chain(WeightNorm(writes=writes), Squeeze(-1))),
    )


def _stack_rows(n: Names, theirs: str, ours: str) -> tuple[Row, ...]:
    point = "convs_pointwise" if n.depthwise == "convs_dilated" else "convs_1x1"
    return (
        *_plain(f"{theirs}.{n.depthwise}.{{j}}", f"{ours}.depthwise.{{j}}"),
        *_pointwise(f"{theirs}.{point}.{{j}}", f"{ours}.pointwise.{{j}}"),
        *_norm(n, f"{theirs}.norms_1.{{j}}", f"{ours}.norms.{{2*j}}"),
        *_norm(n, f"{theirs}.norms_2.{{j}}", f"{ours}.norms.{{2*j+1}}"),
    )


def _spline_rows(n: Names, theirs: str, ours: str) -> tuple[Row, ...]:
    return (
        *_plain(f"{theirs}.{n.pre}", f"{ours}.pre"),
        *_stack_rows(n, f"{theirs}.{n.stack}", f"{ours}.stack"),
        *_plain(f"{theirs}.{n.shape}", f"{ours}.shape"),
    )


def _duration_rows(n: Names) -> tuple[Row, ...]:
    dp, ours = n.duration, "duration_predictor"
    posterior = f"{ours}.posterior"
    return (
        *_plain(f"{dp}.{n.pre}", f"{ours}.pre"),
        *_stack_rows(n, f"{dp}.{n.stack}", f"{ours}.stack"),
        *_plain(f"{dp}.{n.duration_proj}", f"{ours}.proj"),
        *_pointwise(f"{dp}.cond", f"{ours}.speaker"),
        Row(f"{dp}.flows.0.{n.affine_shift}", f"{ours}.affine.shift", optional=True),
        Row(f"{dp}.flows.0.{n.affine_scale}", f"{ours}.affine.log_scale", optional=True),
        *_spline_rows(n, f"{dp}.{n.first_flow}", f"{ours}.first_flow"),
        *_spline_rows(n, f"{dp}.{n.later_flow}", f"{ours}.flows.{{i}}"),
        *_plain(f"{dp}.{n.duration_posterior_pre}", f"{posterior}.pre"),
        *_stack_rows(n, f"{dp}.{n.duration_posterior_stack}", f"{posterior}.stack"),
        *_plain(f"{dp}.{n.duration_posterior_proj}", f"{posterior}.proj"),
        Row(f"{dp}.post_flows.0.{n.affine_shift}", f"{posterior}.affine.shift", optional=True),
        Row(f"{dp}.post_flows.0.{n.affine_scale}", f"{posterior}.affine.log_scale", optional=True),
        *_spline_rows(n, f"{dp}.{n.duration_posterior_flow}", f"{posterior}.flows.{{i}}"),
        # the deterministic predictor
        *_plain(f"{dp}.proj", f"{ours}.proj"),
        *_plain(f"{dp}.conv_1", f"{ours}.convs.0"),
        *_plain(f"{dp}.conv_2", f"{ours}.convs.1"),
        *_norm(n, f"{dp}.norm_1", f"{ours}.norms.0"),
        *_norm(n, f"{dp}.norm_2", f"{ours}.norms.1"),
    )


def _rows(n: Names, decoder: tuple[Row, ...]) -> tuple[Row, ...]:
    return (
        *_text_rows(n),
        *_duration_rows(n),
        *_plain(f"{n.posterior}.{n.pre}", "posterior_encoder.pre"),
        *(
            _optional(row)
            for row in _wavenet_rows(f"{n.posterior}.{n.wavenet}", "posterior_encoder.wavenet", n.weight_norm)
        ),
        *_plain(f"{n.posterior}.{n.posterior_proj}", "posterior_encoder.proj"),
        *_plain(f"{n.flow}.{n.pre}", "flow.couplings.{i}.pre"),
        *_wavenet_rows(f"{n.flow}.{n.wavenet}", "flow.couplings.{i}.wavenet", n.weight_norm),
        *_plain(f"{n.flow}.{n.post}", "flow.couplings.{i}.post"),
        *decoder,
        Row(n.speakers, "speakers.weight", optional=True),
    )


def _optional(row: Row) -> Row:
    return Row(row.theirs, row.ours, row.operation, optional=True)


def _decoder_rows(prefix: str, upsampler: str, writes: str) -> tuple[Row, ...]:
    """Blocks of both types (a file holds one of them); first and last layer come without weight norm."""
    both = (*generator_rows(prefix, "decoder.", 1), *generator_rows(prefix, "decoder.", 2))
    spelled = {
        Row(
            str(row.theirs).replace(f"{prefix}ups.", f"{prefix}{upsampler}."),
            row.ours,
            WeightNorm(writes=writes) if isinstance(row.operation, WeightNorm) else row.operation,
            optional=True,
        ): None
        for row in both
    }
    ends = (
        Row(f"{prefix}conv_pre.weight", "decoder.pre.weight", optional=True),
        Row(f"{prefix}conv_post.weight", "decoder.post.weight", optional=True),
    )
    return (*ends, *spelled, *_pointwise(f"{prefix}cond", "decoder.speaker"))


_ORIGINAL = Names(
    embedding="enc_p.emb.weight",
    text="enc_p",
    layer="attn_layers.{i}",
    attention_norm="norm_layers_1.{i}",
    ffn_norm="norm_layers_2.{i}",
    ffn="ffn_layers.{i}",
    query="conv_q",
    key="conv_k",
    value="conv_v",
    out="conv_o",
    scale="gamma",
    shift="beta",
    pointwise=Squeeze(-1),
    prior="proj",
    posterior="enc_q",
    posterior_proj="proj",
    flow="flow.flows.{2*i}",
    pre="pre",
    wavenet="enc",
    post="post",
    duration="dp",
    duration_proj="proj",
    stack="convs",
    depthwise="convs_sep",
    shape="proj",
    affine_shift="m",
    affine_scale="logs",
    first_flow="flows.1",
    later_flow="flows.{2*i+3}",
    duration_posterior_flow="post_flows.{2*i+1}",
    duration_posterior_pre="post_pre",
    duration_posterior_stack="post_convs",
    duration_posterior_proj="post_proj",
    speakers="emb_g.weight",
    weight_norm="g_v",
)

_TRANSFORMERS = Names(
    embedding="text_encoder.embed_tokens.weight",
    text="text_encoder",
    layer="layers.{i}.attention",
    attention_norm="layers.{i}.layer_norm",
    ffn_norm="layers.{i}.final_layer_norm",
    ffn="layers.{i}.feed_forward",
    query="q_proj",
    key="k_proj",
    value="v_proj",
    out="out_proj",
    scale="weight",
    shift="bias",
    pointwise=Same(),
    prior="project",
    posterior="posterior_encoder",
    posterior_proj="conv_proj",
    flow="flow.flows.{i}",
    pre="conv_pre",
    wavenet="wavenet",
    post="conv_post",
    duration="duration_predictor",
    duration_proj="conv_proj",
    stack="conv_dds",
    depthwise="convs_dilated",
    shape="conv_proj",
    affine_shift="translate",
    affine_scale="log_scale",
    first_flow="flows.1",
    later_flow="flows.{i+2}",
    duration_posterior_flow="post_flows.{i+1}",
    duration_posterior_pre="post_conv_pre",
    duration_posterior_stack="post_conv_dds",
    duration_posterior_proj="post_conv_proj",
    speakers="embed_speaker.weight",
    weight_norm="parametrizations",
)

# Numbered weights of the graph come under the path of their node ("flow.flows.0.enc.in_layers.0.weight"). The exporter
# folded the affine layer's factor exp(-log_scale) into a constant, and in graphs of one speaker named the symbol
# embedding ``sid``.
_FOLDED_SCALE = "/dp/flows.0/Exp_output_0"

ORIGINAL = Layout(
    name="vits original",
    signature=("enc_p.emb.weight", "flow.flows.0.pre.weight", "dec.conv_pre.bias"),
    absent=(_FOLDED_SCALE,),
    rows=_rows(_ORIGINAL, _decoder_rows("dec.", "ups", "g_v")),
)

TRANSFORMERS = Layout(
    name="vits transformers",
    signature=("text_encoder.embed_tokens.weight", "flow.flows.0.conv_pre.weight", "decoder.conv_pre.bias"),
    rows=_rows(_TRANSFORMERS, _decoder_rows("decoder.", "upsampler", "folded")),
)

PIPER = Layout(
    name="vits piper",
    signature=(_FOLDED_SCALE, "enc_p.proj.weight", "dec.conv_pre.bias"),
    rows=(
        Row(_FOLDED_SCALE, "duration_predictor.affine.log_scale", NegativeLog()),
        Row("sid", "text_encoder.embedding.weight", optional=True),
        *ORIGINAL.rows,
    ),
)

LAYOUTS = (ORIGINAL, TRANSFORMERS, PIPER)
