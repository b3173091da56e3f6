-- overrides: what operators have set for types in place of what handlers declare.
SELECT name, override FROM capataz_typepolicy;
