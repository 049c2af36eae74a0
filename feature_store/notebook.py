"""A question as HTML for a notebook: answer, votes, what the controller said, and its responses, folded.

Jinja escapes every value, because questions and responses are text that nobody vouches for.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template

    from feature_store.records import Question

_PAGE = """\
<div style="max-width: 60em">
<p><b>{{ q.question_id }}</b> <span style="white-space: pre-wrap">{{ q.question }}</span></p>
<p>Answer <b>{{ said(q.answer) }}</b>{{ grade(q.correct) }} from {{ q.k }} responses:
{{ "{:,}".format(q.num_sampled_tokens) }} tokens sampled, {{ "%.2f"|format(q.latency_s) }} s until the answer.</p>
<table>
<thead><tr><th>answer</th><th>votes</th></tr></thead>
<tbody>{% for t, count in votes %}<tr><td>{{ said(t.answer) }}{{ grade(t.correct) }}</td><td>{{ count }}</td></tr>
{% endfor %}</tbody>
</table>
{% if q.decisions %}<table>
<thead><tr><th>k</th><th>p_enough</th></tr></thead>
<tbody>{% for d in q.decisions %}<tr><td>{{ d.k }}</td><td>{{ "%.3f"|format(d.p_enough) }}</td></tr>
{% endfor %}</tbody>
</table>{% endif %}
<details><summary>{{ q.k }} responses</summary>
{% for t in q.trajectories %}<details><summary>{{ t.arm }} {{ t.index }}: {{ said(t.answer) }}{{ grade(t.correct) }},
{{ t.num_tokens }} tokens, ends by {{ t.ending }}</summary>
<pre style="white-space: pre-wrap">{{ t.text }}</pre></details>
{% endfor %}</details>
</div>
"""


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    made.globals |= {
        "said": lambda answer: "none" if answer is None else answer,
        "grade": lambda correct: "" if correct is None else " (right)" if correct else " (wrong)",
    }
    return made.from_string(_PAGE)


def html_of(question: Question) -> str:
    """Return a question as one element of HTML, without scripts and outside resources."""
    votes = Counter(t.answer_class for t in question.trajectories)
    first = {t.answer_class: t for t in reversed(question.trajectories)}
    return _template().render(q=question, votes=[(first[each], count) for each, count in votes.most_common()])
