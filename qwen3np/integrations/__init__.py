"""The models as other libraries take them: one module a library, each with an extra of its own."""
