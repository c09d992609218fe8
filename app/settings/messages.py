"""Messages about settings: what is wrong with a value, and variables that are not settings."""

from collections.abc import Collection, Mapping
from difflib import get_close_matches

from pydantic import AliasChoices, ValidationError
from pydantic_core import ErrorDetails

from app.errors import ModelError
from app.settings import NEVER_EMPTY, Settings, values
from app.settings.variables import PREFIX, environment

# The settings that restrict access, with the words that other software uses for them.
_SECURITY_WORDS = {
    "TOPK_API_KEYS": {
        *("KEY", "KEYS", "TOKEN", "TOKENS", "SECRET", "SECRETS", "PASSWORD", "PASSWORDS"),
        *("AUTH", "AUTHENTICATION", "AUTHORIZATION", "BEARER", "CREDENTIAL", "CREDENTIALS"),
    },
    "TOPK_API_KEYS_FILE": set(),
    "TOPK_TRUSTED_PROXIES": {"PROXY", "PROXIES", "FORWARDED"},
    "TOPK_RATE_LIMIT": {"RATE", "RATELIMIT", "QUOTA", "THROTTLE"},
    "TOPK_CORS_ORIGINS": {"CORS", "ORIGIN", "ORIGINS"},
}


def explain(error: ValidationError, options: Collection[str] = ()) -> str:
    """The first fault as a sentence that begins with its source: one of the command's ``options``, or a variable."""
    fault = error.errors()[0]
    place = str(fault["loc"][0])
    field = next(name for name in Settings.model_fields if place in (name, *_variables(name)))
    if field in options:
        return f"--{field.replace('_', '-')}: {_sentence(fault)}"
    names = {name.upper(): name for name, value in environment().items() if value or field in NEVER_EMPTY}
    source = next((names[name] for name in _variables(field) if name in names), field)
    return f"{source}: {_sentence(fault)}"


def unknown_names(variables: Mapping[str, str]) -> list[str]:
    """The variables that are named like settings but are not, each with the nearest setting: most are misspelt.

    Raises ModelError for a name that resembles a setting that restricts access: ignoring it could open the service.
    """
    known = {name for field in Settings.model_fields for name in _variables(field) if name.startswith(PREFIX)}
    stems = {name.removeprefix(PREFIX): name for name in known}
    unknown = []
    for name in sorted(name for name in variables if name.upper().startswith(PREFIX) and name.upper() not in known):
        stem = name.upper().removeprefix(PREFIX)
        nearest = next((stems[match] for match in get_close_matches(stem, stems, 1)), None)
        if security := _security_setting(stem, nearest):
            raise ModelError(f"{name} is not a setting; did you mean {security}? Rename or unset it")
        unknown.append(f"{name} ({nearest}?)" if nearest else name)
    return unknown


def _security_setting(stem: str, nearest: str | None) -> str | None:
    """The setting that restricts access and resembles ``stem``, a name without its prefix."""
    if nearest in _SECURITY_WORDS:
        return nearest
    parts = set(stem.split("_"))
    return next((setting for setting, words in _SECURITY_WORDS.items() if words & parts), None)


def _variables(field: str) -> list[str]:
    """The environment variables of a setting, its own first."""
    alias = Settings.model_fields[field].validation_alias
    return [str(name) for name in alias.choices] if isinstance(alias, AliasChoices) else [f"{PREFIX}{field}".upper()]


def _sentence(fault: ErrorDetails) -> str:
    given, context = repr(fault["input"]), fault.get("ctx", {})
    match fault["type"]:
        case "value_error":
            return str(context["error"])
        case "int_parsing" | "int_parsing_size":
            return f"{given} is not a whole number"
        case "bool_parsing":
            return f"{given} is not a boolean; write true or false"
        case "literal_error":
            return f"{given} is not allowed; choose {context['expected']}"
        case "greater_than_equal":
            return f"{given} is too small; the minimum is {context['ge']}"
        case "less_than_equal":
            return f"{given} is too large; the maximum is {context['le']}"
        case "ip_any_network":
            return f"{given} is not an IP address or network; {values.network_hint(str(fault['input']))}"
    return fault["msg"]
