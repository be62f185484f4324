"""Signs that a text was written for a machine: instructions, forged roles, hidden or encoded parts.

The patterns miss some texts, so no protection depends on them alone: code that does not read the text limits its
possible effects. A text with a sign is left to a person, which includes a few honest texts.
"""

from __future__ import annotations

import re

from include.streams.inference.redaction import Cleaned

# An honest text has a few invisible characters: in emoji, soft hyphens, marks of right-to-left scripts.
MANY_INVISIBLE = 8

_SIGNS = {
    # Patterns in the languages of many customers. The last lines have no word boundaries (\b), for scripts that do not
    # end words with spaces.
    "override": r"""
        \b(?:ignore|disregard|forget|override|bypass|skip)\b.{0,40}\b(?:instructions?|rules?|prompts?|polic(?:y|ies)|
            guidelines|above|previous|prior|safeguards?|restrictions|checks?)\b
        |\b(?:ignorier\w*|vergiss|missachte\w*|übergeh\w*)\b.{0,40}\b(?:anweisung\w*|regeln?|vorgaben|vorherig\w*|
        bisherig\w*)
        |\b(?:ignore[zr]?|oublie[zr]?|n.gligez)\b.{0,40}\b(?:instructions?|consignes|r.gles|pr.c.dent\w*)
        |\b(?:ignor[ae]|olvid[ae]|dimentica|esque.a|desconsidere)\b.{0,40}\b(?:instrucciones|reglas|anteriores|
        istruzioni|
            precedenti|regole|instru..es|regras)
        |\b(?:negeer|vergeet)\b.{0,40}\b(?:instructies|regels|vorige)
        |\b(?:zignoruj|ignoruj|zapomnij)\b.{0,40}\b(?:instrukcj\w*|polece\w*|poprzedni\w*)
        |\b(?:talimat|kural)\w*.{0,30}\b(?:yok\ say|unut|g.rmezden)
        |(?:забудь|игнорируй|проигнорируй)\w*.{0,40}(?:инструкц|правил|указан|предыдущ)
        |(?:忽略|无视|無視|忘记|忘れ).{0,15}(?:指令|指示|规则|規則|说明)|(?:指令|指示|规则|規則|说明).{0,10}(?:忽略|无视|無視|忘记|忘れ)
        |(?:지시|명령|규칙).{0,10}(?:무시|잊)|(?:تجاهل|انس).{0,30}(?:تعليمات|أوامر|قواعد)
        |(?:अनदेखा|नज़रअंदाज़|निर्देश.{0,20}भूल)
    """,
    "role": r"""
        (?:^|\n|[>\]}"'.!?]\s?)\s*(?:\#+\s*)?(?:system|assistant|developer|tool|function|operator|admin)\s?
            (?:message|prompt|note|output|result|response|instruction|override|notice)?\s*[:>\]]
        |<\|[\w ]{1,30}\|>|\[/?INST\]|<</?SYS>>
        |</?(?:system|assistant|user|tool\w*|function\w*|untrusted\S*|instructions?|requests?|
            messages?)\b[^>]{0,80}>
        |(?:^|\n)\s*\#{2,}\s*\w
        |"(?:role|tool_calls?|tool_call_id|function_call|finish_reason)"\s*:
        |\b(?:you\ are\ now|act\ as|pretend\ (?:to\ be|you)|from\ now\ on\ you|developer\ mode|jailbr\w+|
            do\ anything\ now|roleplay|role-play|new\ persona|simulat\w+\ (?:a|an|the)\ (?:system|agent|operator))\b
        |\b(?:du\ bist\ (?:jetzt|ab\ sofort)|tu\ es\ maintenant|ahora\ eres|ora\ sei|agora\ voc.\ .)\b
    """,
    "machine": r"""
        \b(?:language\ model|system\ prompt|initial\ prompt|your\ (?:prompt|instructions|guidelines|tools?)|
        AI\ (?:agent|
            model|assistant|system)|as\ an\ ai|chatbot|LLM|GPT|(?:triage|dispatch)\ (?:agent|bot|engine|model|
            system|ai))\b
        |\b(?:dear|hello|hi|hey|attention|to)\ (?:the\ )?(?:ai|agent|bot|assistant|robot|computer|machine|algorithm)\b
        |\b(?:classif(?:y|ied|ication)|categori[sz]e|label)\b.{0,30}\b(?:as|this|it|to|must|should)\b
        |\b(?:set|change|raise|mark|output|return|respond|reply|answer|print|emit|call|invoke|execute|run|submit|
        use)\b.{0,30}
            \b(?:severity|category|json|tool|function|evidence|target\b|command|with\ only|exactly|verbatim)
        |\b(?:pre-?approved|already\ approved|auto-?approv\w*|(?:without|no|skip\w*)\ (?:\w+\ )?
            (?:approval|confirmation|review)|approval\ (?:is\ )?(?:not|granted|given|token|code|id)|
            authoris?z?ed\ by|authori[sz]ation\ code)\b
    """,
    "data": r"""
        "\w{2,30}"\s*:\s*(?:"|\{|\[|true|false|[0-9])|\b[a-z]{2,20}\((?:["'][^"')]{0,60}["']|\w+=[^)]{0,60})\)
        |\b(?:select|drop|delete|insert|update|union)\b[^.]{0,40}\b(?:from|table|into|set|select)\b\s*\w+\s*(?:;|
        where|values|--|$)
        |(?:\b(?:priority|severity|category|action|reason|intent|label|route|status|verdict|target)\s*[:=][^\n]{0,60}){2}
        |<(?:script|img|iframe|svg|a\ href|style|!--)|\{\{.{1,80}\}\}|\$\{.{1,80}\}|```
    """,
    "encoded": r"""
        \b(?=[A-Za-z0-9+/]*[0-9+/])(?=[A-Za-z0-9+/]*[a-z])(?=[A-Za-z0-9+/]*[A-Z])[A-Za-z0-9+/]{24,}={0,2}
        |\b(?:[0-9a-fA-F]{2}[ :]?){24,}\b|(?:%[0-9a-fA-F]{2}){4,}|(?:\\u[0-9a-fA-F]{4}){3,}|(?:\\x[0-9a-fA-F]{2}){4,}
        |(?:&\#x?[0-9a-fA-F]{2,5};){4,}|(?:\b[01]{8}\b\s?){4,}|\b(?:base64|rot-?13|hex)\b|(?:\b\w\b[ .\-_]){10,}
        # Cyrillic or Greek letters within a Latin word; mu and omega stand in units.
        |[A-Za-z][\u0400-\u04ff\u0391-\u03a8\u03b1-\u03bb\u03bd-\u03c9]|[\u0400-\u04ff\u0391-\u03a8\u03b1-\u03bb\u03bd-\u03c9][A-Za-z]
    """,
}
_PATTERNS = {name: re.compile(pattern, re.VERBOSE | re.IGNORECASE) for name, pattern in _SIGNS.items()}
# Without IGNORECASE, because mixed case is the sign of an encoded word.
_PATTERNS["encoded"] = re.compile(_SIGNS["encoded"], re.VERBOSE)


def signs_of_manipulation(cleaned: Cleaned, internal_words: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """Find signs in a text.

    Args:
        cleaned: The text, from `redaction.clean`.
        internal_words: Names that only the machine knows, such as names of its tools, in lower case with underscores. A
            person does not write them by chance.

    Returns:
        The names of the signs: "override", "role", "machine", "data", "encoded", "internal", "invisible".
    """
    signs = [name for name, pattern in _PATTERNS.items() if pattern.search(cleaned.text)]
    if internal_words & set(re.findall(r"[a-z_]+", cleaned.text.lower())):
        signs.append("internal")
    if cleaned.invisible >= MANY_INVISIBLE:
        signs.append("invisible")
    return tuple(signs)
