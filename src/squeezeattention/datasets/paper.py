"""The data sets of the paper, zero-shot: an article, a dialogue or a story, then what is wanted of it."""

from __future__ import annotations

from .dataset import Recipe
from .fields import Fields
from .sources import Home
from .template import Template

CNN_DAILYMAIL = Recipe(
    name="cnn_dailymail",
    metric="rouge2",
    summary="news articles and their highlights (CNN, Daily Mail)",
    template=Template(
        "News article:\n{context}\n\nList the key points of this article in about three short sentences.\nKey points:"
    ),
    max_new_tokens=128,
    fields=Fields(context="article", answers="highlights", id="id"),
    home=Home("abisee/cnn_dailymail", ("3.0.0/test-*.parquet", "test*.*")),
    split="test",
)
XSUM = Recipe(
    name="xsum",
    metric="rouge2",
    summary="BBC articles and their one-sentence summaries",
    template=Template("News article:\n{context}\n\nSay in one sentence what this article is about.\nSummary:"),
    max_new_tokens=64,
    fields=Fields(context="document", answers="summary", id="id"),
    home=Home("EdinburghNLP/xsum", ("*test-*.parquet", "test*.*")),
    split="test",
)
SAMSUM = Recipe(
    name="samsum",
    metric="rougeL",
    summary="messenger dialogues and their summaries",
    template=Template("Dialogue:\n{context}\n\nSummarize this dialogue in one to three sentences.\nSummary:"),
    max_new_tokens=128,
    fields=Fields(context="dialogue", answers="summary", id="id"),
    home=Home("knkarthick/samsum", ("test.csv", "test*.*")),
    split="test",
)
NARRATIVEQA = Recipe(
    name="narrativeqa",
    metric="qa_f1",
    summary="questions about whole books and film scripts, many to a story",
    template=Template(
        "Story:\n{context}\n\nAnswer this question about the story in a few words, without explaining.\n"
        "Question: {input}\nAnswer:"
    ),
    max_new_tokens=128,
    fields=Fields(context="document.text", answers="answers.text", input="question.text", id="document.id"),
    home=Home("deepmind/narrativeqa", ("data/test-*.parquet", "test*.*")),
    split="test",
)
TRIVIAQA = Recipe(
    name="triviaqa",
    metric="qa_f1",
    summary="trivia questions with the Wikipedia articles that answer them",
    template=Template(
        "Articles:\n{context}\n\nAnswer this question from the articles, with nothing but the answer.\n"
        "Question: {input}\nAnswer:"
    ),
    max_new_tokens=32,
    fields=Fields(context="entity_pages.wiki_context", answers="answer.aliases", input="question", id="question_id"),
    # The answers of the test part are not public.
    home=Home("mandarjoshi/trivia_qa", ("rc.wikipedia/validation-*.parquet", "validation*.*")),
    split="validation",
)

PAPER = (CNN_DAILYMAIL, XSUM, SAMSUM, NARRATIVEQA, TRIVIAQA)
