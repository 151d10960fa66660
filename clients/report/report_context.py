"""The report's part on long contexts: the two pictures, the table behind them, and how the line is computed."""

from remuda.clients.report import units
from remuda.clients.report.canvas import figure
from remuda.clients.report.context_plots import held_bytes, latency_plot, memory_plot
from remuda.clients.report.kv import cache_bytes, crossing_tokens, grouped_query
from remuda.clients.report.markup import NOTHING, Markup, folded, section, table, tag
from remuda.clients.report.measures import (
    LATENCY_MEASURES,
    MEMORY_MEASURES,
    growth,
    percentile,
    point_cache_bytes,
    quietest_growth,
    server_bytes,
    spread,
    states_bytes,
)
from remuda.clients.report.results import KvShape, LoadResult, LongContext

Card = tuple[str, str, str]


def context_cards(result: LoadResult) -> list[Card]:
    """Name, figure and detail of the headline figures."""
    context = result.long_context
    if context is None or not context.points:
        return []
    first, last = context.points[0], context.points[-1]
    memory = [server_bytes(point.sample) for point in context.points]
    latency = [percentile(point.itl, "50") for point in context.points]
    way = f"{first.context_tokens:,} to {last.context_tokens:,} tokens"
    cards = []
    if (apart := spread(memory)) is not None:
        cards.append(("Server memory", units.size(memory[-1]), f"within {units.share(apart)}, {way}"))
    if (change := growth(latency)) is not None:
        detail = f"p50 at {last.context_tokens:,} tokens, {units.change(change)} against {first.context_tokens:,}"
        if (least := quietest_growth(context)) is not None:
            detail += f"; {units.change(least)} in the quietest parts"
        cards.append(("Inter-token latency", units.duration(latency[-1]), detail))
    if (states := states_bytes(context)) is not None:
        detail = f"{units.counted(context.num_sequences, 'sequence')}, at any length"
        cards.append(("State memory", units.size(states), detail))
    if (cache := point_cache_bytes(result, last)) is not None:
        detail = f"computed, {last.context_tokens:,} tokens each"
        cards.append(("A KV cache instead", units.size(cache), detail))
    return cards


def context_section(result: LoadResult) -> Markup:
    """Nothing where no long context was asked for."""
    context = result.long_context
    if context is None:
        return NOTHING
    title = "Long context"
    if not context.points:
        return section(title, tag("p", "No length was reached."))
    memory, latency = memory_plot(result, context), latency_plot(context)
    parts = [
        figure(latency, _latency_table(context)) if latency else NOTHING,
        _formulas(context, result.kv) if result.kv else NOTHING,
    ]
    return section(
        title,
        figure(memory, _memory_table(result, context))
        if memory
        else tag("p", "The server does not say what memory it holds."),
        tag("div", *parts, class_="pair"),
    )


def _latency_table(context: LongContext) -> Markup:
    columns = [(one.name, [one.write(one.get(point)) for point in context.points]) for one in LATENCY_MEASURES]
    return _table("ITL: time between two tokens", context, columns)


def _memory_table(result: LoadResult, context: LongContext) -> Markup:
    kv, points = result.kv, context.points
    columns = [(one.name, [one.write(one.get(point)) for point in points]) for one in MEMORY_MEASURES]
    columns.append(("States", [units.size(states_bytes(context)) for _ in points]))
    if kv is not None:
        for name, shape in (("KV cache", kv), ("KV cache, grouped-query", grouped_query(kv))):
            sizes = [cache_bytes(shape, point.context_tokens, point.num_sequences) for point in points]
            columns.append((name, [units.size(size) for size in sizes]))
    return _table(f"{units.counted(context.num_sequences, 'sequence')} at each length", context, columns)


def _table(caption: str, context: LongContext, columns: list[tuple[str, list[str]]]) -> Markup:
    """Those of the columns that have a number."""
    shown = [column for column in columns if set(column[1]) - {units.MISSING}]
    lengths = [f"{point.context_tokens:,}" for point in context.points]
    rows = list(zip(lengths, *(cells for _, cells in shown), strict=True))
    return table(caption, ["Context, tokens", *(name for name, _ in shown)], rows)


def _formulas(context: LongContext, kv: KvShape) -> Markup:
    """The line, step by step, with its sources and what it leaves out."""
    num, each = context.num_sequences, kv.bytes_per_token()
    last = context.points[-1].context_tokens
    lines = [
        _formula(
            "KV cache = 2 · layers · kv width · bytes · tokens · sequences",
            f"= 2 · {kv.num_layers} · {kv.kv_width:,} · {kv.bytes_per_value} · tokens · {num}",
            f"= {each * num:,} B · tokens",
            f"= {units.size(cache_bytes(kv, last, num))} at {last:,} tokens",
        ),
        tag("p", f"The shape: {kv.basis}. {kv.bytes_per_value} bytes a value."),
    ]
    if context.state_bytes is not None:
        lines.append(
            _formula(
                "States = bytes of a state · sequences",
                f"= {context.state_bytes:,} B · {num} = {units.size(states_bytes(context))}, at any length",
            )
        )
    return tag(
        "div",
        tag("h3", "How the line is computed"),
        *lines,
        _crossings(context, kv),
        _grouped(context, kv),
        _sources(),
        class_="panel",
    )


def _formula(*lines: str) -> Markup:
    parts = [part for line in lines for part in (Markup("<br>"), Markup(tag("span", line)))][1:]
    return tag("code", *parts, class_="formula")


def _crossings(context: LongContext, kv: KvShape) -> Markup:
    words, num = [], context.num_sequences
    if (states := states_bytes(context)) is not None:
        words.append(f"The cache is larger than the states from {crossing_tokens(kv, num, states):,.0f} tokens on")
    if (held := held_bytes(context)) is not None:
        start = "and larger" if words else "The cache is larger"
        words.append(
            f"{start} than all that the server holds ({units.size(held)}, weights and program included) "
            f"from {crossing_tokens(kv, num, held):,.0f} tokens on"
        )
    return tag("p", ", ".join(words) + ".") if words else NOTHING


def _grouped(context: LongContext, kv: KvShape) -> Markup:
    thin, num = grouped_query(kv), context.num_sequences
    last = context.points[-1].context_tokens
    words = (
        f"The thinner line is the same Transformer with grouped-query attention, a quarter of the "
        f"heads of keys and values: {thin.bytes_per_token() * num:,} B · tokens, "
        f"{units.size(cache_bytes(thin, last, num))} at {last:,}"
    )
    if (held := held_bytes(context)) is not None:
        words += f"; it passes what the server holds at {crossing_tokens(thin, num, held):,.0f} tokens"
    return tag("p", f"{words}.")


def _sources() -> Markup:
    return folded(
        "Sources, and what the line leaves out",
        tag(
            "p",
            "A Transformer block has about 12·d² parameters: 4·d² in attention and 8·d² in an MLP of width 4·d "
            "(arXiv 1706.03762). A Mamba block with expand 2, which Longhorn's is too, has about 6·d², so two of "
            "them are one Transformer block of the same width (arXiv 2312.00752, section 3.4). Each layer caches "
            "a key and a value of the kv width for each token. Grouped-query attention: arXiv 2305.13245.",
        ),
        tag(
            "p",
            "The line is computed, not measured. It counts the cache and nothing else: no weights, no workspace, "
            "no half-filled blocks. A cache in 8 bits would be half as large; a sliding window would end its "
            "growth, and what the model sees.",
        ),
    )
