"""Request and response models, from which the OpenAPI document is generated.

    requests.py   bodies
    responses.py  JSON responses
    errors.py     error responses
    document.py   models to OpenAPI, for ``openapi_extra`` and ``responses`` of a route

Responses are written with orjson and are not validated while serving: ``tests/api/test_schemas.py`` validates them.
"""
