"""Contexts that latents stand for: DNA, base64, scripts, HTTP, licences, nutrition labels and others.

    judged = judge(records.text, vocabulary, standard_proxies())     # which tokens are in which context
    of_features = evaluate_contexts(records, judged)                 # all latents against all contexts
    of_neurons = evaluate_contexts(neuron_records, judged)
    table = context_table(records, neuron_records, judged, (of_features, of_neurons))
    for row in table.rows:
        labels = judged.labels_of(row.context)
        pair = [activation_histogram(r, labels, unit.latent)
                for r, unit in ((records, row.feature), (neuron_records, row.neuron))]
        context_picture(f"{row.context}.png", row, *pair)
        context_ablation(records, sae, model, hook, row.feature.latent, labels)

The proxies are those of "Towards Monosemanticity" (likelihood ratios; likelihood.py) and rules (rules.py). They see the text only.
"""

from saefast.interp.contexts.ablation import ContextAblation, Mean, context_ablation
from saefast.interp.contexts.auc import Auc, auc_of, difference
from saefast.interp.contexts.blocks import BLOCKS
from saefast.interp.contexts.evaluate import Evaluation, Figures, evaluate_contexts
from saefast.interp.contexts.judged import Judged, documents_of, judge, rows_of
from saefast.interp.contexts.likelihood import Alphabet, Script, base64, dna, hexadecimal
from saefast.interp.contexts.pictures import context_picture
from saefast.interp.contexts.proxy import Proxy
from saefast.interp.contexts.rules import RULES, Rules
from saefast.interp.contexts.table import (
    ActivationHistogram,
    ContextTable,
    Row,
    Unit,
    activation_histogram,
    best_latents,
    context_table,
)
from saefast.interp.records.text import Text

__all__ = [
    "BLOCKS",
    "RULES",
    "ActivationHistogram",
    "Alphabet",
    "Auc",
    "ContextAblation",
    "ContextTable",
    "Evaluation",
    "Figures",
    "Judged",
    "Mean",
    "Proxy",
    "Row",
    "Rules",
    "Script",
    "Unit",
    "activation_histogram",
    "auc_of",
    "base64",
    "best_latents",
    "context_ablation",
    "context_picture",
    "context_table",
    "difference",
    "dna",
    "documents_of",
    "evaluate_contexts",
    "hexadecimal",
    "judge",
    "rows_of",
    "standard_proxies",
]


def standard_proxies(sample: Text | None = None) -> list[Proxy]:
    """DNA, base64, hexadecimal numbers, all scripts, and all rules.

    Args:
        sample: the text whose frequencies the likelihood ratios are made of; default: the text that is judged. Give the recorded
            text to judge what a model has written.
    """
    found: list[Proxy] = [dna(sample), base64(sample), hexadecimal(sample)]
    found += [Script(name, sample) for name in BLOCKS]
    return [*found, *RULES]
