"""Private fine-tuning of language models: data, objectives, generation, evaluation, saving.

Room: recipes.text. The only place that imports transformers, peft and the libraries of text metrics.
"""

from ._answers import Answers, answer, load_run_model, read_prompts
from ._dialog import read_personachat
from ._generate import Decoding, generate
from ._metrics import text_metrics
from ._pairs import SourceTargets, grouped, pairs
from ._save import merged, save_model
from ._score import Perplexity, log_likelihoods, perplexity, text_rows
from ._table_to_text import read_dart, read_e2e, read_webnlg

__all__ = [
    "Answers",
    "Decoding",
    "Perplexity",
    "SourceTargets",
    "answer",
    "generate",
    "grouped",
    "load_run_model",
    "log_likelihoods",
    "merged",
    "pairs",
    "perplexity",
    "read_dart",
    "read_e2e",
    "read_personachat",
    "read_prompts",
    "read_webnlg",
    "save_model",
    "text_metrics",
    "text_rows",
]
