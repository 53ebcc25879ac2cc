"""LongBench: its 21 tasks from its JSONL files, with its rules and limits, and prompts in our own words.

Rules: at most so many new tokens for each task, the middle of a long prompt goes, only the first line of an
answer counts for trec, triviaqa, samsum and lsht, and no chat template around examples or code. The published
prompts (``dataset2prompt.json``) can be given instead of ours: see :func:`published_prompt`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from .dataset import Recipe
from .fields import Fields
from .sources import Home
from .template import Asks, Template

PREFIX = "longbench_"
_FIELDS = Fields(context="context", answers="answers", input="input", id="_id")


class _Kind(NamedTuple):
    """What the tasks of one kind share."""

    metric: str
    text: str
    asks: Asks = Asks.AFTER_CONTEXT
    marker: str = ""
    first_line: bool = False
    chat: bool = True


_PASSAGES = _Kind(
    "qa_f1",
    "Passages:\n{context}\n\nAnswer this question from the passages above, with nothing but the answer.\n"
    "Question: {input}\nAnswer:",
)
_CODE = _Kind(
    "code_sim", "Below is the beginning of some code.\n{context}{input}The next line of this code is:\n",
    Asks.AFTER_INPUT, chat=False,
)  # fmt: skip

#: Task: (new tokens, what it is, its kind).
_TASKS: dict[str, tuple[int, str, _Kind]] = {
    "narrativeqa": (128, "questions about a book or a film script", _Kind(
        "qa_f1",
        "Story:\n{context}\n\nAnswer this question about the story in as few words as you can, without "
        "explaining.\nQuestion: {input}\nAnswer:",
    )),
    "qasper": (128, "questions about a scientific article", _Kind(
        "qa_f1",
        "Article:\n{context}\n\nAnswer this question about the article in a phrase or a sentence, without "
        'explaining. To a question that is answered by yes or no, say "yes" or "no"; if the article does not '
        'say, say "unanswerable".\nQuestion: {input}\nAnswer:',
    )),
    "multifieldqa_en": (64, "questions about a text of any field", _Kind(
        "qa_f1",
        "Text:\n{context}\n\nAnswer this question from the text above, with nothing but the answer.\n"
        "Question: {input}\nAnswer:",
    )),
    "multifieldqa_zh": (64, "the same in Chinese", _Kind(
        "qa_f1_zh", "文章：\n{context}\n\n请根据上文简短回答问题，只写答案。\n问题：{input}\n回答：",
    )),
    "hotpotqa": (32, "questions that need two passages", _PASSAGES),
    "2wikimqa": (32, "questions that need several passages", _PASSAGES),
    "musique": (32, "questions that need up to four passages", _PASSAGES),
    "dureader": (128, "questions about Chinese search results", _Kind(
        "rouge_zh", "文章：\n{context}\n\n请根据上述文章回答问题。\n问题：{input}\n回答：",
    )),
    "gov_report": (512, "a summary of a government report", _Kind(
        "rougeL_longbench", "Report:\n{context}\n\nSummarize this report in one page.\nSummary:",
    )),
    "qmsum": (512, "a question about a meeting", _Kind(
        "rougeL_longbench",
        "Meeting:\n{context}\n\nAnswer this query about the meeting in one or more sentences.\n"
        "Query: {input}\nAnswer:",
    )),
    "multi_news": (512, "a summary of several news articles", _Kind(
        "rougeL_longbench", "News:\n{context}\n\nSummarize all of this news in one page.\nSummary:",
    )),
    "vcsum": (512, "a summary of a Chinese meeting", _Kind(
        "rouge_zh", "会议记录：\n{context}\n\n请总结这次会议的内容。\n总结：",
    )),
    "trec": (64, "the type of a question, from examples", _Kind(
        "classification",
        "These are questions with their types. Give the type of the last one.\n\n{context}\n{input}",
        first_line=True, chat=False,
    )),
    "triviaqa": (32, "a trivia question about a passage, after examples", _Kind(
        "qa_f1",
        "Answer the last question from its passage, with nothing but the answer, as in the examples.\n\n"
        "{context}\n\n{input}",
        Asks.IN_INPUT, "Question:", first_line=True, chat=False,
    )),
    "samsum": (128, "a summary of a dialogue, after examples", _Kind(
        "rougeL_longbench",
        "Summarize the last dialogue in a few short sentences, as in the examples.\n\n{context}\n\n{input}",
        Asks.IN_INPUT, "Summary:", first_line=True, chat=False,
    )),
    "lsht": (64, "the category of Chinese news, from examples", _Kind(
        "classification", "下面是一些新闻及其类别，请判断最后一则新闻的类别。\n\n{context}\n{input}",
        Asks.IN_INPUT, "类别", first_line=True, chat=False,
    )),
    "passage_count": (32, "how many different passages there are", _Kind(
        "count",
        "Paragraphs, some of them more than once:\n{context}\n\nHow many different paragraphs are there? Write "
        "just the number, such as 1, 2 or 3.\nNumber: ",
    )),
    "passage_retrieval_en": (32, "which paragraph an abstract is of", _Kind(
        "retrieval",
        "Paragraphs:\n{context}\n\nWhich of the paragraphs is this an abstract of?\n{input}\n\nAnswer in the form "
        '"Paragraph 1", "Paragraph 2" and so on.\nAnswer: ',
    )),
    "passage_retrieval_zh": (32, "the same in Chinese", _Kind(
        "retrieval_zh",
        "段落：\n{context}\n\n下面的摘要出自哪一段？\n{input}\n\n请按“段落1”“段落2”的格式回答。\n答案：",
    )),
    "lcc": (64, "the next line of a file of code", _CODE),
    "repobench-p": (64, "the next line of code, with other files of its repository", _CODE),
}  # fmt: skip

TASKS = tuple(_TASKS)


def _recipe(task: str, new_tokens: int, summary: str, kind: _Kind) -> Recipe:
    return Recipe(
        name=PREFIX + task,
        metric=kind.metric,
        summary=f"LongBench: {summary}",
        template=Template(kind.text, kind.asks, kind.marker),
        max_new_tokens=new_tokens,
        fields=_FIELDS.mapped({"classes": "all_classes"} if kind.metric == "classification" else {}),
        home=Home("THUDM/LongBench", (f"{task}.jsonl", f"{task}.parquet"), archive="data.zip"),
        split="test",
        first_line=kind.first_line,
        chat=kind.chat,
    )


LONGBENCH = tuple(_recipe(task, *rest) for task, rest in _TASKS.items())


def published_prompt(path: str | os.PathLike[str], task: str) -> str:
    """A task's prompt in LongBench's own file, for ``prompt=``: the wording that published figures are of.

    Where the question begins stays as it is here. Raises :class:`InputError` if the file does not have it.
    """
    file = Path(path)
    try:
        prompts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the prompts {file}: {error}") from error
    found = prompts.get(task.removeprefix(PREFIX)) if isinstance(prompts, dict) else None
    if not isinstance(found, str):
        raise InputError(
            f"{file} has no prompt for {task!r}; it is LongBench's config/dataset2prompt.json that is meant"
        )
    return found
