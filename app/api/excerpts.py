"""Clients' values as error messages show them: short, whatever was sent."""

_CHARACTERS = 64


def shown(value: object) -> str:
    """A value as JSON writes it; of a list or an object only its type."""
    match value:
        case str():
            return repr(shortened(value))
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case int() | float():
            return shortened(str(value))
    return json_type(value)


def shortened(text: str) -> str:
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}..."


def json_type(value: object) -> str:
    """The JSON type of a value."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
    return "an object"
