"""Whether anything in a Python file may change a variable after the literal that defines it.

The file is parsed and never run, so its literal is the variable's value only if no other
statement can change the object. Aliases of the object and of its parts are followed through
assignments, loops, comprehensions, containers and the file's own functions, scope by scope.
Anything that could change an alias is a finding: a store, a deletion, a method that isn't known
to only read, or a call to a function defined elsewhere.
"""

import ast
import typing as tp

Kind = tuple[int, int]
"""What an expression may refer to. (0, n) is the object itself or a part of it, with n mutable
levels: (0, 2) is the dict of lists, (0, 1) one of its lists. (f, n) is the same inside f
containers created later, which may be changed freely."""

Kinds = frozenset[Kind]
NOTHING: Kinds = frozenset()
MAX_CONTAINERS = 6

READS = {"items", "keys", "values", "get", "copy", "index", "count"}
PURE = {
    *("all", "any", "bool", "float", "hash", "int", "isinstance", "len", "max", "min"),
    *("print", "range", "repr", "round", "str", "sum", "type", "deepcopy", "dumps"),
    *("join", "format", "pformat", "pprint", "debug", "info", "warning", "error"),
}
"""Functions, and methods of other objects, that neither change nor keep an argument."""
COPIES = {"list", "tuple", "sorted", "set", "frozenset", "reversed", "iter", "islice"}
COPIES |= {"tqdm"}
KEEPS = {"append", "add", "extend", "insert", "appendleft", "update", "setdefault"}
"""Methods that put an argument into another container."""
ANYTHING = {"exec", "eval", "globals", "locals", "vars", "__import__", "__builtins__"}
ANYTHING_OF = {"__globals__", "f_globals", "f_locals"}
ANYTHING_IMPORTED = {("builtins", ""), ("__main__", ""), ("sys", "modules")}
"""Built-in names, attributes, and modules (or their members) that can change any variable."""

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def findings(
    tree: ast.Module, definition: ast.stmt, variable: str, n_levels: int
) -> list[tuple[int, str]]:
    """The line and a description of each statement that may change the variable.

    Args:
        definition: The statement that assigns the literal.
        n_levels: 2 for a dict of lists, 1 for a list.
    """
    uses = _Uses(tree, definition, variable, n_levels)
    while True:
        before = uses.size()
        uses.found.clear()
        uses.suite(tree.body, None)
        if uses.size() == before:
            return sorted(set(uses.found))


class _Uses:
    def __init__(
        self, tree: ast.Module, definition: ast.stmt, variable: str, n_levels: int
    ):
        self.definition, self.variable = definition, variable
        self.found: list[tuple[int, str]] = []
        self.kinds: dict[tuple[ast.AST | None, str], Kinds] = {}
        self.returns: dict[str, Kinds] = {}
        self.attributes: dict[str, Kinds] = {}
        """By name, regardless of their objects."""
        self.parents: dict[ast.AST, ast.AST | None] = {}
        self.bound: dict[ast.AST | None, set[str]] = {None: set()}
        self.functions: dict[str, ast.FunctionDef | ast.AsyncFunctionDef] = {}
        self.imported = {
            name
            for node in ast.walk(tree)
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in _names_bound_by(node)
        }
        self.home: ast.AST | None = None
        """The scope that the variable is in; None for the module."""
        self._scopes(tree, None)
        if isinstance(self.home, FUNCTIONS) and variable in _declared_outside(
            self.home
        ):
            self.home = self.scope_of(variable, self.home)
        self.kinds[self.home, variable] = frozenset({(0, n_levels)})

    def size(self) -> int:
        tables = (self.kinds, self.returns, self.attributes)
        return sum(len(kinds) for table in tables for kinds in table.values())

    def finding(self, node: ast.AST, what: str) -> None:
        self.found.append((getattr(node, "lineno", 1), what))

    def anything(self, node: ast.AST, name: str) -> None:
        self.finding(node, f'uses {name}, by which "{self.variable}" may change')

    # ---- scopes ------------------------------------------------------------------------------

    def _scopes(self, node: ast.AST, scope: ast.AST | None) -> None:
        """Find the names that each scope binds, and the scope that defines the variable."""
        for child in ast.iter_child_nodes(node):
            if child is self.definition:
                self.home = scope
            for name in _names_bound_by(child):
                self.bound[scope].add(name)
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self.functions[child.name] = child
            if isinstance(child, (*FUNCTIONS, *COMPREHENSIONS, ast.ClassDef)):
                self.parents[child], self.bound[child] = scope, set()
                if isinstance(child, FUNCTIONS):
                    self.bound[child] |= {a.arg for a in _parameters(child)}
                self._scopes(child, child)
                self.bound[child] -= _declared_outside(child)
            else:
                self._scopes(child, scope)

    def scope_of(self, name: str, scope: ast.AST | None) -> ast.AST | None:
        """The scope that binds a name used in `scope`."""
        while scope is not None and name not in self.bound[scope]:
            scope = self.parents[scope]
        return scope

    def is_variable(self, name: str, scope: ast.AST | None) -> bool:
        return name == self.variable and self.scope_of(name, scope) is self.home

    def is_attribute(self, node: ast.Attribute) -> bool:
        """Whether it may be the variable, as an attribute of its class."""
        return isinstance(self.home, ast.ClassDef) and node.attr == self.variable

    # ---- statements --------------------------------------------------------------------------

    def suite(self, nodes: tp.Iterable[ast.AST], scope: ast.AST | None) -> None:
        for node in nodes:
            self.statement(node, scope)

    def statement(self, node: ast.AST, scope: ast.AST | None) -> None:
        if isinstance(node, ast.expr):
            self.of(node, scope)
            return
        for name in _names_bound_by(node):
            if self.is_variable(name, scope) and not isinstance(node, ast.Name):
                self.finding(node, f'binds "{self.variable}" again')
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            for part in (*node.decorator_list, *_bases(node)):
                self.of(part, scope)
            for name, part in _defaults(node):
                self.hold(name, self.of(part, scope), node)
            self.suite(node.body, node)
            if isinstance(node, ast.ClassDef):
                for name in self.bound[node]:
                    self.keep_attribute(name, self.kinds.get((node, name), NOTHING))
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                self.assign(target, node.value, scope, node is self.definition)
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None:
                is_definition = node is self.definition
                self.assign(node.target, node.value, scope, is_definition)
        elif isinstance(node, ast.AugAssign):
            self.store(node.target, self.of(node.value, scope), scope)
            if _is_part(self.of(node.target, scope)):
                self.finding(node, f'changes "{self.variable}" in place')
        elif isinstance(node, ast.Delete):
            for target in node.targets:
                self.store(target, NOTHING, scope)
        elif isinstance(node, (ast.For, ast.AsyncFor)):
            self.loop(node.target, node.iter, scope)
            self.suite([*node.body, *node.orelse], scope)
        elif isinstance(node, (ast.With, ast.AsyncWith)):
            for item in node.items:
                kinds = self.of(item.context_expr, scope)
                if item.optional_vars is not None:
                    self.store(item.optional_vars, kinds | inner(kinds), scope)
            self.suite(node.body, scope)
        elif isinstance(node, ast.Return):
            self.give_back(node, scope, self.of(node.value, scope))
        elif isinstance(node, ast.Import):
            for module in (alias.name for alias in node.names):
                if (module, "") in ANYTHING_IMPORTED:
                    self.anything(node, module)
        elif isinstance(node, ast.ImportFrom):
            if node.names[0].name == "*" and self.home is None:
                self.finding(node, f'may import another "{self.variable}"')
            for alias in node.names:
                if {(node.module, ""), (node.module, alias.name)} & ANYTHING_IMPORTED:
                    self.anything(node, f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Match):
            kinds = deep(self.of(node.subject, scope))
            for below in ast.walk(node):
                if isinstance(below, (ast.MatchAs, ast.MatchStar)) and below.name:
                    self.hold(below.name, kinds | wrap(kinds), scope)
            self.suite(ast.iter_child_nodes(node), scope)
        else:
            self.suite(ast.iter_child_nodes(node), scope)

    def assign(
        self,
        target: ast.expr,
        value: ast.expr,
        scope: ast.AST | None,
        is_definition: bool = False,
    ) -> None:
        if pairs := _pairwise(target, value):
            for one, of in pairs:
                self.assign(one, of, scope)
            return
        kinds = self.of(value, scope)
        is_itself = isinstance(target, ast.Name) and target.id == self.variable
        if is_definition:
            kinds |= self.kinds[self.home, self.variable]
        if not (is_definition and is_itself):
            self.store(target, kinds, scope)

    def loop(self, target: ast.expr, iterable: ast.expr, scope: ast.AST | None) -> None:
        """Assign each element of an iterable to a loop's target."""
        kinds = each(self.of(iterable, scope))
        parts = target.elts if isinstance(target, ast.Tuple) else []
        if len(parts) == 2 and _is_pairs(iterable):
            # The first of a pair is a key or a number.
            self.store(parts[0], NOTHING, scope)
            self.store(parts[1], inner(kinds), scope)
        else:
            self.store(target, kinds, scope)

    def store(self, target: ast.AST, kinds: Kinds, scope: ast.AST | None) -> None:
        """Store something in the target of any statement."""
        if isinstance(target, ast.Name):
            if self.is_variable(target.id, scope):
                self.finding(target, f'binds "{self.variable}" again')
            else:
                self.hold(target.id, kinds, scope)
        elif isinstance(target, ast.Starred):
            self.store(target.value, wrap(kinds), scope)
        elif isinstance(target, (ast.Tuple, ast.List)):
            for part in target.elts:
                self.store(part, inner(kinds), scope)
        elif isinstance(target, (ast.Subscript, ast.Attribute)):
            if isinstance(target, ast.Attribute) and self.is_attribute(target):
                self.finding(target, f'binds "{self.variable}" again')
            if _is_part(self.of(target.value, scope)):
                self.finding(target, f'changes a part of "{self.variable}"')
            if isinstance(target, ast.Attribute):
                self.keep_attribute(target.attr, kinds)
            self.keep(target.value, kinds, scope)

    def hold(self, name: str, kinds: Kinds, scope: ast.AST | None) -> None:
        key = self.scope_of(name, scope), name
        self.kinds[key] = self.kinds.get(key, NOTHING) | kinds

    def keep_attribute(self, name: str, kinds: Kinds) -> None:
        self.attributes[name] = self.attributes.get(name, NOTHING) | kinds

    def keep(self, holder: ast.expr, kinds: Kinds, scope: ast.AST | None) -> None:
        """Another object gets a reference to what an expression may reach."""
        while isinstance(holder, (ast.Subscript, ast.Attribute, ast.Call)):
            holder = holder.func if isinstance(holder, ast.Call) else holder.value
            kinds = kinds | wrap(kinds)
        if isinstance(holder, ast.Name) and not self.is_variable(holder.id, scope):
            self.hold(holder.id, wrap(kinds), scope)

    def is_own(self, node: ast.expr, scope: ast.AST | None) -> bool:
        """Whether the file itself created an object, judging by its name."""
        while isinstance(node, (ast.Subscript, ast.Attribute, ast.Call)):
            node = node.func if isinstance(node, ast.Call) else node.value
        if not isinstance(node, ast.Name):
            return True
        return node.id in self.bound[self.scope_of(node.id, scope)] - self.imported

    def give_back(self, node: ast.AST, scope: ast.AST | None, kinds: Kinds) -> None:
        while scope is not None and not isinstance(scope, FUNCTIONS):
            scope = self.parents[scope]
        name = getattr(scope, "name", "")
        if kinds and name.startswith("__"):  # by an operator or a statement, unseen
            self.finding(node, f'gives "{self.variable}" away by {name}()')
        self.returns[name] = self.returns.get(name, NOTHING) | kinds

    # ---- expressions -------------------------------------------------------------------------

    def of(self, node: ast.AST | None, scope: ast.AST | None) -> Kinds:
        """What an expression may reach; checks everything that it does."""
        if node is None or isinstance(node, ast.Constant):
            return NOTHING
        if isinstance(node, ast.Name):
            at = self.scope_of(node.id, scope)
            if node.id in ANYTHING and node.id not in self.bound[at]:
                self.anything(node, node.id)
            given = wrap(self.returns.get(node.id, NOTHING))
            return given | self.kinds.get((at, node.id), NOTHING)
        if isinstance(node, ast.Call):
            return self.call(node, scope)
        if isinstance(node, COMPREHENSIONS):
            for generator in node.generators:
                self.loop(generator.target, generator.iter, node)
                for test in generator.ifs:
                    self.of(test, node)
            if isinstance(node, ast.DictComp):
                self.of(node.key, node)
                return wrap(self.of(node.value, node))
            return wrap(self.of(node.elt, node))
        if isinstance(node, ast.Lambda):
            for name, part in _defaults(node):
                self.hold(name, self.of(part, scope), node)
            return wrap(self.of(node.body, node))
        if isinstance(node, ast.NamedExpr):
            kinds = self.of(node.value, scope)
            at = scope
            while isinstance(at, COMPREHENSIONS):
                at = self.parents[at]
            self.store(node.target, kinds, at)
            return kinds
        if isinstance(node, ast.Attribute):
            kinds = self.of(node.value, scope)
            if self.is_attribute(node):
                return self.kinds[self.home, self.variable]
            if node.attr in ANYTHING_OF or self.is_sys_modules(node):
                self.anything(node, f".{node.attr}")
            if _is_part(kinds):
                self.finding(node, f'takes .{node.attr} of "{self.variable}"')
            given = self.returns.get(node.attr, NOTHING)  # of a property, or a method
            kept = self.attributes.get(node.attr, NOTHING)
            return inner(kinds) | kept | given | wrap(given)
        if isinstance(node, ast.Subscript):
            kinds = self.of(node.value, scope)
            self.of(node.slice, scope)
            return copied(kinds) if isinstance(node.slice, ast.Slice) else inner(kinds)
        children = list(ast.iter_child_nodes(node))
        below = [self.of(child, scope) for child in children]
        joined = NOTHING.union(*below)
        if isinstance(node, (ast.List, ast.Tuple, ast.Set, ast.Dict)):
            items = [
                inner(kinds) if _is_star(child, node) else kinds
                for child, kinds in zip(children, below, strict=True)
            ]
            return wrap(NOTHING.union(*items))
        if isinstance(node, ast.BinOp):
            return copied(joined)
        if isinstance(node, (ast.BoolOp, ast.IfExp, ast.Starred, ast.Await)):
            return joined
        if isinstance(node, (ast.Yield, ast.YieldFrom)):
            is_each = isinstance(node, ast.YieldFrom)
            self.give_back(node, scope, joined if is_each else wrap(joined))
        return NOTHING

    def call(self, node: ast.Call, scope: ast.AST | None) -> Kinds:
        given = [self.of(arg, scope) for arg in node.args]
        named = [(k.arg, self.of(k.value, scope)) for k in node.keywords]
        joined = NOTHING.union(*given, *(kinds for _, kinds in named))
        if isinstance(node.func, ast.Attribute):
            name, base = node.func.attr, self.of(node.func.value, scope)
            if _is_part(base):
                if name not in READS:
                    self.finding(node, f'calls .{name}() of "{self.variable}"')
                return _read_by(name, base)
            if name in KEEPS and self.is_own(node.func.value, scope):
                kept = inner(joined) if name in ("extend", "update") else joined
                self.keep(node.func.value, kept, scope)
                return inner(base) | joined
            if base and name in READS:
                return _read_by(name, base)
            base |= self.of(node.func, scope)
        elif isinstance(node.func, ast.Name):
            name, base = node.func.id, self.of(node.func, scope)
            if name in self.functions and not _has_star(node):
                return self.own(self.functions[name], given, named)
        else:
            name, base = "a function", self.of(node.func, scope)
        if name in ("setattr", "delattr") and self.variable in _strings(node):
            self.finding(node, f'sets "{self.variable}"')
        if name == "import_module" and _names_this_module(node):
            self.anything(node, f"{name}()")
        if not joined:
            return inner(base)
        if name in PURE | COPIES:
            self.by_key(node, each(joined), scope)
        if name in ("min", "max"):
            return joined | each(joined)
        if name == "sum":  # of nothing it is its start
            return NOTHING.union(*given[1:], *(kinds for _, kinds in named))
        if name in PURE:
            return inner(base)
        if name in COPIES:
            return wrap(each(joined))
        if name == "dict":
            return copied(joined) | wrap(inner(inner(joined)))
        if name in ("enumerate", "zip", "zip_longest", "product"):
            return wrap(wrap(each(joined)))
        if name in ("chain", "from_iterable"):
            return wrap(each(joined) | each(each(joined)))
        if name == "next":
            return each(joined)
        self.finding(
            node,
            f'hands "{self.variable}", or a part of it, to {name}(), which may change it',
        )
        return joined

    def by_key(self, node: ast.Call, kinds: Kinds, scope: ast.AST | None) -> None:
        """A function passed as key= gets the items that are sorted or compared."""
        for key in (k.value for k in node.keywords if k.arg == "key"):
            name = getattr(key, "id", "")
            if isinstance(key, ast.Lambda):
                for arg in _parameters(key):
                    self.hold(arg.arg, kinds, key)
            elif name in self.functions:
                self.own(self.functions[name], [kinds], [])
            elif isinstance(key, (ast.Constant, ast.Call)) or name in PURE:
                continue
            elif kinds:
                self.finding(node, f'hands a part of "{self.variable}" to its key')

    def is_sys_modules(self, node: ast.Attribute) -> bool:
        if not isinstance(node.value, ast.Name):
            return False
        return node.attr == "modules" and node.value.id in self.imported

    def own(
        self,
        function: ast.FunctionDef | ast.AsyncFunctionDef,
        given: list[Kinds],
        named: list[tuple[str | None, Kinds]],
    ) -> Kinds:
        """A call of one of the file's own functions: its parameters refer to the arguments."""
        names = [a.arg for a in _parameters(function)]
        if function.args.vararg or function.args.kwarg:
            given = [kinds | wrap(kinds) for kinds in given]
            named = [(name, kinds | wrap(kinds)) for name, kinds in named]
        for i, kinds in enumerate(given):
            self.hold(names[min(i, len(names) - 1)] if names else "", kinds, function)
        for name, kinds in named:
            for to in [name] if name in names else names:
                self.hold(to, kinds, function)
        return self.returns.get(function.name, NOTHING)


# ---- kinds -----------------------------------------------------------------------------------


def wrap(kinds: Kinds) -> Kinds:
    """A new container of it."""
    return frozenset((min(f + 1, MAX_CONTAINERS), n) for f, n in kinds)


def inner(kinds: Kinds) -> Kinds:
    """Its contents, except for strings, which nothing can change."""
    found = {(f - 1, n) if f else (0, n - 1) for f, n in kinds}
    # A container at the maximum depth may contain another at that depth.
    found |= {kind for kind in kinds if kind[0] == MAX_CONTAINERS}
    return frozenset(kind for kind in found if kind[1] > 0)


def deep(kinds: Kinds) -> Kinds:
    """It, and its contents at any depth."""
    while (found := kinds | inner(kinds)) != kinds:
        kinds = found
    return kinds


def each(kinds: Kinds) -> Kinds:
    """What a loop over it yields: for a dict, its keys."""
    return inner(kinds - {(0, 2)})


def copied(kinds: Kinds) -> Kinds:
    """A new container with its contents."""
    return frozenset((f, n) if f else (1, n - 1) for f, n in kinds if f or n > 1)


def _read_by(name: str, kinds: Kinds) -> Kinds:
    if name == "items":
        return wrap(wrap(inner(kinds)))
    if name in ("values", "copy"):
        return wrap(inner(kinds))
    return inner(kinds) if name == "get" else NOTHING


def _is_part(kinds: Kinds) -> bool:
    return any(f == 0 for f, _ in kinds)


# ---- syntax ----------------------------------------------------------------------------------


def _names_bound_by(node: ast.AST) -> list[str]:
    """The names that a node itself binds in its scope."""
    if isinstance(node, ast.Name):
        return [] if isinstance(node.ctx, ast.Load) else [node.id]
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [(a.asname or a.name).partition(".")[0] for a in node.names]
    if isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)):
        return [node.name] if node.name else []
    if isinstance(node, ast.MatchMapping):
        return [node.rest] if node.rest else []
    return []


def _declared_outside(scope: ast.AST) -> set[str]:
    """The names that a scope declares global or nonlocal."""
    return {
        name
        for node in ast.walk(scope)
        if isinstance(node, (ast.Global, ast.Nonlocal))
        for name in node.names
    }


def _parameters(node: ast.AST) -> list[ast.arg]:
    args = tp.cast(ast.FunctionDef, node).args
    stars = [a for a in (args.vararg, args.kwarg) if a is not None]
    return [*args.posonlyargs, *args.args, *args.kwonlyargs, *stars]


def _bases(node: ast.AST) -> list[ast.expr]:
    if not isinstance(node, ast.ClassDef):
        return []
    return [*node.bases, *(k.value for k in node.keywords)]


def _defaults(node: ast.AST) -> list[tuple[str, ast.expr]]:
    """A function's parameters with a default, and the default."""
    if isinstance(node, ast.ClassDef):
        return []
    args = tp.cast(ast.FunctionDef, node).args
    plain = [*args.posonlyargs, *args.args]
    found = list(zip(reversed(plain), reversed(args.defaults), strict=False))
    found += [
        (arg, default)
        for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)
        if default is not None
    ]
    return [(arg.arg, default) for arg, default in found]


def _is_pairs(node: ast.expr) -> bool:
    """Whether an iterable surely yields pairs whose first item is a key or a number."""
    if isinstance(node, ast.BinOp):
        return _is_pairs(node.left) and _is_pairs(node.right)
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Attribute):
        return node.func.attr == "items"
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if name in COPIES and node.args:
        return _is_pairs(node.args[0])
    return name == "enumerate"


def _pairwise(target: ast.expr, value: ast.expr) -> list[tuple[ast.expr, ast.expr]]:
    """Each part of a target with its value, if there are equally many; else none."""
    shapes = (ast.Tuple, ast.List)
    if not isinstance(target, shapes) or not isinstance(value, shapes):
        return []
    parts = [*target.elts, *value.elts]
    if any(isinstance(part, ast.Starred) for part in parts):
        return []
    n_same = len(target.elts) == len(value.elts)
    return list(zip(target.elts, value.elts, strict=True)) if n_same else []


def _has_star(node: ast.Call) -> bool:
    return any(isinstance(arg, ast.Starred) for arg in node.args) or any(
        keyword.arg is None for keyword in node.keywords
    )


def _is_star(child: ast.AST, node: ast.AST) -> bool:
    """Whether a display unpacks `child`."""
    if isinstance(node, ast.Dict):
        return any(
            key is None and value is child
            for key, value in zip(node.keys, node.values, strict=True)
        )
    return isinstance(child, ast.Starred)


def _names_this_module(node: ast.Call) -> bool:
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return "__name__" in names or "__main__" in _strings(node)


def _strings(node: ast.AST) -> set[object]:
    return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
