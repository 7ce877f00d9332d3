"""Dialogues as the model's template writes them: as transformers does, in a sandbox."""

import json
from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from client.tokenizer import TextTokenizer
from contract.errors import PromptError, SettingsError
from tests.generation.fake_decoder import make_tokenizer

TEMPLATE = """{%- for m in messages %}
    {%- if m.role == 'robot' %}{{ raise_exception('no robots here') }}{% endif %}
    {{- bos_token + m.role + ': ' + m.content | trim + eos_token }}
    {%- if loop.index > 8 %}{% break %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'assistant:' }}{% endif %}
"""
TURNS = [{"role": "user", "content": " hi "}, {"role": "assistant", "content": "ho"}]


def with_config(folder: Path, config: object, template: str | None = None) -> TextTokenizer:
    make_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return TextTokenizer(folder)


@pytest.mark.parametrize("place", ["file", "config", "named", "old file"])
def test_a_template_is_found_wherever_models_have_it(tmp_path: Path, place: str) -> None:
    config: dict[str, object] = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    if place == "config":
        config["chat_template"] = TEMPLATE
    elif place == "named":
        config["chat_template"] = [
            {"name": "tools", "template": "no"},
            {"name": "default", "template": TEMPLATE},
        ]
    elif place == "old file":
        (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    else:
        config["chat_template"] = "the older one"
        (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "the oldest"}))
    opened = with_config(tmp_path, config, TEMPLATE if place == "file" else None)
    assert opened.can_chat
    assert opened.render_chat(TURNS) == "<s>user: hi</s><s>assistant: ho</s>assistant:"


def test_special_tokens_are_found_in_their_own_file(tmp_path: Path) -> None:
    special = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "not this one"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    opened = with_config(tmp_path, {"bos_token": None, "eos_token": "</s>"}, TEMPLATE)
    assert opened.render_chat(TURNS[:1]) == "<s>user: hi</s>assistant:"
    (tmp_path / "special_tokens_map.json").write_text("[")
    with pytest.raises(SettingsError, match=r"special_tokens_map\.json: no JSON"):
        TextTokenizer(tmp_path)


def test_a_template_may_refuse_and_may_not_do_more(tmp_path: Path) -> None:
    opened = with_config(tmp_path, {}, TEMPLATE)
    with pytest.raises(PromptError, match="no robots here"):
        opened.render_chat([{"role": "robot", "content": ""}])
    for number, evil in enumerate(
        (
            "{{ messages.__class__.__mro__ }}",
            "{{ ''.__class__.__base__.__subclasses__() }}",
            "{% for i in range(999999999) %}x{% endfor %}",
            "{{ messages.append(1) }}",
        )
    ):
        with pytest.raises(PromptError, match="template"):
            with_config(tmp_path / str(number), {}, evil).render_chat(TURNS)


def test_a_model_without_template_says_so(tmp_path: Path) -> None:
    opened = with_config(tmp_path, {})
    assert not opened.can_chat
    with pytest.raises(SettingsError, match="chat_template"):
        opened.encode_chat(TURNS)


ARGUMENTS = (
    "ensure_ascii=False",
    "ensure_ascii=True",
    "indent=2",
    "separators=(',', ':')",
    "sort_keys=True, indent=1, separators=(',', ': ')",
    "true, 2",
)
WRITTEN = [
    TEMPLATE,
    # As in templates that models were trained with on what the assistant says.
    "{% for m in messages %}{% if m.role == 'assistant' %}\n"
    "    {% generation %}\n"
    "{{ m.content }}{{ loop.index }}\n"
    "    {% endgeneration %}\n"
    "{% else %}{{- m.content -}}{% endif %}{% endfor %}",
    "{% set w = 'a' %}{%- generation -%} {% set w = 'b' %}{{ w }} {%- endgeneration %}{{ w }}",
    "{% if tools is not none %}tools{% endif %}{% if tools is defined %}defined{% endif %}",
    "{% if documents is not none %}documents{% endif %}{{ documents is defined }}",
    "{% if tools %}tools{% elif documents %}documents{% else %}neither{% endif %}",
    *(f"{{{{ messages | tojson({arguments}) }}}}" for arguments in ARGUMENTS),
    "{{ {'b': '<é&>', 'a': messages[0].content} | tojson }}",
]


@pytest.mark.parametrize("template", WRITTEN)
def test_a_template_writes_what_it_writes_in_transformers(tmp_path: Path, template: str) -> None:
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    turns = [*TURNS, {"role": "user", "content": "Grüße \u2028 <b>"}]
    ([there], _) = render_jinja_template(
        [turns], chat_template=template, add_generation_prompt=True, **special
    )
    assert with_config(tmp_path, special, template).render_chat(turns) == there


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("a\n{% if %}", "line 2: Expected an expression"),
        ("{% generation %}", "line 1: Unexpected end of template"),
        ("{% surprise %}", "line 1: Encountered unknown tag 'surprise'"),
        ("{{ messages | surprise }}", "line 1: No filter named 'surprise'"),
        ("{% for m in messages %}{% generation %}{% break %}{% endgeneration %}{% endfor %}", ""),
    ],
)
def test_a_template_that_is_none_is_the_folder_s_fault_and_no_message_s(
    tmp_path: Path, place: str, template: str, why: str
) -> None:
    in_config = place == "tokenizer_config.json"
    opened = with_config(
        tmp_path,
        {"chat_template": template} if in_config else {},
        None if in_config else template,
    )
    assert not opened.can_chat
    assert opened.decode(opened.encode("texts")) == "texts"
    with pytest.raises(SettingsError) as refused:
        opened.render_chat(TURNS)
    assert not isinstance(refused.value, PromptError)
    assert f"{tmp_path / place}: no chat template that can be used ({why}" in str(refused.value)


@pytest.mark.parametrize("fault", ["'a'.encode('no such')", "'{0}'.format()", "5 | dictsort"])
def test_whatever_a_template_fails_at_is_a_refusal(tmp_path: Path, fault: str) -> None:
    with pytest.raises(PromptError, match="template refuses"):
        with_config(tmp_path, {}, f"{{{{ {fault} }}}}").render_chat(TURNS)
