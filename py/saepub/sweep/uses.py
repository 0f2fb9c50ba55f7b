"""Whether anything in a Python file may change a variable after the literal that defines it.

The file is parsed and never run, so its literal is the variable's value only if no other
statement can change the object. Each use of the variable is followed outward through the syntax
tree: to what its parent node does with it, and to where that puts it (another name, a container,
an attribute, a parameter of one of the file's own functions), whose uses are followed in turn.
Only what is known to leave the object as it is passes; anything else is a finding.
"""

import ast
import collections
import re
import typing as tp


class Kind(tp.NamedTuple):
    """How an expression may refer to the variable's object."""

    n_around: int
    """The containers around it that were created later, which may be changed freely. Without
    any, the expression is the object itself or a part of it."""
    n_levels: int
    """Its mutable levels: 2 for the dict of lists, 1 for one of its lists."""


def wrap(kind: Kind | None) -> Kind | None:
    """A new container of it."""
    return kind and Kind(kind.n_around + 1, kind.n_levels)


def inner(kind: Kind | None) -> Kind | None:
    """Its contents; None for strings, which nothing can change."""
    if kind is None or kind == (0, 1):
        return None
    n_around, n_levels = kind
    return Kind(n_around - 1, n_levels) if n_around else Kind(0, n_levels - 1)


def each(kind: Kind | None) -> Kind | None:
    """What a loop over it yields: for a dict, its keys."""
    return None if _is_part(kind) else inner(kind)


def copied(kind: Kind | None) -> Kind | None:
    """A new container with its contents."""
    return wrap(inner(kind))


def nothing(_: Kind) -> None:
    """It is only looked at."""


def _is_part(kind: Kind | None) -> bool:
    return kind is not None and kind.n_around == 0


MAX_AROUND = 6
BECOMES: dict[type[ast.AST], tp.Callable[[Kind], Kind | None]] = {
    **dict.fromkeys([ast.Expr, ast.Compare, ast.UnaryOp, ast.FormattedValue], nothing),
    **dict.fromkeys([ast.Assert, ast.If, ast.While], nothing),
    **dict.fromkeys([ast.BoolOp, ast.IfExp, ast.Await], lambda kind: kind),
    **dict.fromkeys([ast.List, ast.Set, ast.Lambda], wrap),
    **dict.fromkeys([ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp], wrap),
    **{ast.Starred: each, ast.BinOp: copied},
}
"""What syntax around an expression makes of it."""

READS = {"items", "keys", "values", "get", "copy", "index", "count"}
PURE = {
    *("all", "any", "bool", "float", "hash", "int", "isinstance", "len"),
    *("print", "range", "repr", "round", "str", "type", "deepcopy", "dumps"),
    *("join", "format", "pformat", "pprint", "debug", "info", "warning", "error"),
}
"""Functions, and methods of other objects, that neither change, keep nor return an argument."""
COPIES = {"list", "tuple", "sorted", "set", "frozenset", "reversed", "iter", "islice"}
COPIES |= {"tqdm"}
KEEPS = {"append", "add", "extend", "insert", "appendleft", "update", "setdefault"}
"""Methods that put an argument into another container."""
ANYTHING = {"exec", "eval", "globals", "locals", "vars", "__import__", "__builtins__"}
ANYTHING_OF = {"__globals__", "f_globals", "f_locals"}
ANYTHING_IMPORTED = {"builtins", "__main__", "sys.modules"}
"""Built-in names, attributes, and modules (or their members) that can change any variable."""

Def = ast.FunctionDef | ast.AsyncFunctionDef
Function = Def | ast.Lambda
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
Scope = ast.ClassDef | Function | Comprehension
INSIDE = {"body", "elt", "key", "value", "generators"}
"""The parts of a scope's node that are evaluated in the scope itself."""


def findings(
    tree: ast.Module, definition: ast.stmt, variable: str, n_levels: int
) -> list[tuple[int, str]]:
    """The line and a description of each statement that may change the variable.

    Args:
        definition: The statement that assigns the literal.
        n_levels: 2 for a dict of lists, 1 for a list.
    """
    uses = _Uses(tree, definition, variable)
    uses.check_names()
    uses.follow_all(Kind(0, n_levels))
    return sorted(uses.found)


class _Uses:
    def __init__(self, tree: ast.Module, definition: ast.stmt, variable: str):
        self.tree, self.definition, self.variable = tree, definition, variable
        self.found: set[tuple[int, str]] = set()
        self.todo: list[tuple[ast.expr, Kind]] = []
        self.seen: set[tuple[ast.AST, Kind]] = set()
        self.parents: dict[ast.AST, ast.AST] = {}
        self.scopes: dict[ast.AST, ast.AST] = {}
        """The scope that each node is evaluated in."""
        self.bound: dict[ast.AST, set[str]] = collections.defaultdict(set)
        """The names that each scope binds."""
        self.imported: set[str] = set()
        self._index(tree, tree)
        for node, scope in self.scopes.items():
            if isinstance(node, ast.Global | ast.Nonlocal):
                self.bound[scope] -= set(node.names)
        self.uses: dict[tuple[ast.AST | None, str], list[ast.expr]]
        self.uses = collections.defaultdict(list)
        """By scope and name; those of attributes under None, regardless of their objects."""
        self.functions: dict[tuple[ast.AST, str], list[Def]]
        self.functions = collections.defaultdict(list)
        for node in self.scopes:
            if isinstance(node, ast.Name):
                self.uses[self.scope_of(node.id, node), node.id].append(node)
            elif isinstance(node, ast.Attribute):
                self.uses[None, node.attr].append(node)
            elif isinstance(node, Def):
                self.functions[self.scope_of(node.name, node), node.name].append(node)
        self.home = self.scope_of(variable, definition)

    def _index(self, node: ast.AST, scope: ast.AST) -> None:
        """Note the parent and the scope of each node, and the names that each scope binds."""
        if isinstance(self.parents.get(node), ast.NamedExpr) and _is_stored(node):
            while isinstance(scope, Comprehension):
                scope = self.scopes[scope]
        self.scopes[node] = scope
        self.bound[scope].update(_names_bound_by(node))
        if isinstance(node, ast.Import | ast.ImportFrom):
            self.imported.update(_names_bound_by(node))
        if isinstance(node, Function):
            self.bound[node].update(arg.arg for arg in _parameters(node))
        for field, value in ast.iter_fields(node):
            inside = node if isinstance(node, Scope) and field in INSIDE else scope
            if isinstance(node, ast.comprehension) and field == "iter":
                whole = tp.cast(ast.ListComp, scope)
                inside = self.scopes[whole] if node is whole.generators[0] else scope
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    self.parents[child] = node
                    self._index(child, inside)

    def scope_of(self, name: str, node: ast.AST) -> ast.AST:
        """The scope that binds a name where `node` is evaluated."""
        scope = start = self.scopes[node]
        while scope is not self.tree:
            is_hidden = isinstance(scope, ast.ClassDef) and scope is not start
            if name in self.bound[scope] and not is_hidden:
                break
            scope = self.scopes[scope]
        return scope

    def finding(self, node: ast.AST, what: str) -> None:
        self.found.add((getattr(node, "lineno", 1), what))

    # ---- what may change it by its name ------------------------------------------------------

    def check_names(self) -> None:
        """Find what binds the variable again, and what may change any variable."""
        again = f'binds "{self.variable}" again'
        for node in self.scopes:
            for name in _names_bound_by(node):
                is_it = name == self.variable and self.scope_of(name, node) is self.home
                if is_it and not self._is_definition(node):
                    self.finding(node, again)
            match node:
                case ast.Name(name) if name in ANYTHING:
                    if name not in self.bound[self.scope_of(name, node)]:
                        self.anything(node, name)
                case ast.Attribute(_, name) if name in ANYTHING_OF:
                    self.anything(node, f".{name}")
                case ast.Attribute(ast.Name(name), "modules") if name in self.imported:
                    self.anything(node, ".modules")
                case ast.Attribute(_, self.variable) if _is_stored(node):
                    if isinstance(self.home, ast.ClassDef):
                        self.finding(node, again)
                case ast.Import(aliases):
                    for alias in aliases:
                        if alias.name in ANYTHING_IMPORTED:
                            self.anything(node, alias.name)
                case ast.ImportFrom(module, aliases):
                    for name in (f"{module}.{alias.name}" for alias in aliases):
                        if {module, name} & ANYTHING_IMPORTED:
                            self.anything(node, name)
                        if name.endswith(".*") and self.home is self.tree:
                            self.finding(node, f'may import another "{self.variable}"')
                case ast.Call(func) if _name(func) in ("setattr", "delattr"):
                    if repr(self.variable) in ast.unparse(node):
                        self.finding(node, f'sets "{self.variable}"')
                case ast.Call(func) if _name(func) == "import_module":
                    if re.search("__(name|main)__", ast.unparse(node)):
                        self.anything(node, "import_module()")

    def anything(self, node: ast.AST, name: str) -> None:
        self.finding(node, f'uses {name}, by which "{self.variable}" may change')

    def _is_definition(self, node: ast.AST) -> bool:
        """Whether a name is the definition's own, or is only annotated."""
        parent = self.parents[node]
        is_annotation = isinstance(parent, ast.AnnAssign) and parent.value is None
        is_name = isinstance(node, ast.Name) and node.id == self.variable
        return is_name and (parent is self.definition or is_annotation)

    # ---- what refers to it -------------------------------------------------------------------

    def follow_all(self, kind: Kind) -> None:
        """Follow the variable, and all that comes to refer to it, until nothing new does."""
        self.hold(self.home, self.variable, kind)
        for target in targets(self.definition):
            if not self._is_definition(target):
                self.bind(target, kind)
        while self.todo:
            self.follow(*self.todo.pop())

    def reach(self, node: ast.AST, *kinds: Kind | None) -> None:
        """An expression refers to it, so what is done with the expression matters."""
        for kind in kinds:
            if kind is None or (node, kind) in self.seen:
                continue
            self.seen.add((node, kind))
            if kind.n_around > MAX_AROUND:
                self.finding(node, f'nests "{self.variable}" too deep to follow')
            else:
                self.todo.append((tp.cast(ast.expr, node), kind))

    def hold(self, scope: ast.AST | None, name: str, *kinds: Kind | None) -> None:
        """A name, or an attribute, refers to it, and so does each use of the name."""
        for use in self.uses[scope, name]:
            if self._is_read(use):
                self.reach(use, *kinds)
        if isinstance(scope, ast.ClassDef):
            self.hold(None, name, *kinds)

    def _is_read(self, node: ast.AST) -> bool:
        return not _is_stored(node) or isinstance(self.parents[node], ast.AugAssign)

    def bind(self, target: ast.AST | None, *kinds: Kind | None) -> None:
        """A statement assigns it to a target, or puts it into one."""
        match target:
            case ast.Name(name):
                self.hold(self.scope_of(name, target), name, *kinds)
            case ast.Starred(value):
                self.bind(value, *map(wrap, kinds))
            case ast.Tuple(parts) | ast.List(parts):
                for part in parts:
                    self.bind(part, *map(inner, kinds))
            case ast.Attribute(holder, name):
                self.hold(None, name, *kinds)
                self.bind(holder, *map(wrap, kinds))
            case ast.Subscript(holder) | ast.Call(ast.Attribute(holder) | holder):
                self.bind(holder, *map(wrap, kinds))

    def give_back(self, function: Def, node: ast.AST, kind: Kind | None) -> None:
        """A function returns or yields it, so each call of the function refers to it."""
        name, scope = function.name, self.scope_of(function.name, function)
        if name.startswith("__"):  # by an operator or a statement, unseen
            self.finding(node, f'gives "{self.variable}" away by {name}()')
        self.hold(scope, name, wrap(kind))
        if isinstance(scope, ast.ClassDef):  # perhaps as a property
            self.hold(None, name, kind)

    # ---- what is done with it ----------------------------------------------------------------

    def follow(self, node: ast.expr, kind: Kind) -> None:
        """Follow an expression that refers to it to what its parent does with it."""
        parent = self.parents[node]
        match parent:
            case ast.Attribute():
                self.attribute(parent, kind)
            case ast.Subscript(value, index):
                if node is value:
                    self.subscript(parent, index, kind)
            case ast.Call(func):
                if node is func:
                    self.reach(parent, inner(kind))
                else:
                    self.argument(parent, node, kind)
            case ast.keyword(name) if isinstance(
                call := self.parents[parent], ast.Call
            ):
                self.argument(call, parent, kind if name else inner(kind))
            case ast.Assign() | ast.AnnAssign():
                for each_target in targets(parent):
                    self.bind(each_target, kind)
            case ast.AugAssign(target):
                if node is not target:
                    self.bind(target, copied(kind))
                elif _is_part(kind):
                    self.finding(node, f'changes "{self.variable}" in place')
            case ast.NamedExpr(target):
                self.bind(target, kind)
                self.reach(parent, kind)
            case ast.For(target, iterable) | ast.AsyncFor(target, iterable):
                self.loop(target, iterable, kind)
            case ast.comprehension(target, iterable):
                if node is iterable:
                    self.loop(target, iterable, kind)
            case ast.withitem():
                self.bind(parent.optional_vars, kind, inner(kind))
            case ast.Return() | ast.YieldFrom() | ast.Yield() if isinstance(
                function := self.scopes[parent], Def
            ):
                is_one_of_many = isinstance(parent, ast.Yield)
                self.give_back(function, node, wrap(kind) if is_one_of_many else kind)
            case ast.arguments():
                self.hold(self.parents[parent], _with_default(parent, node), kind)
            case ast.Tuple():
                if own_target := _counterpart(node, parent, self.parents[parent]):
                    self.bind(own_target, kind)
                else:
                    self.reach(parent, wrap(kind))
            case ast.Dict(keys, values):
                is_unpacked = node in values and keys[values.index(node)] is None
                self.reach(parent, copied(kind) if is_unpacked else wrap(kind))
            case _ if type(parent) in BECOMES:
                self.reach(parent, BECOMES[type(parent)](kind))
            case _:
                self.finding(
                    node, f'uses "{self.variable}" in a way that may change it'
                )

    def attribute(self, node: ast.Attribute, kind: Kind) -> None:
        parent = self.parents[node]
        is_called = isinstance(parent, ast.Call) and parent.func is node
        if is_called and node.attr in READS:
            self.reach(parent, _read_by(node.attr, kind))
        elif is_called and _is_part(kind):
            self.finding(node, f'calls .{node.attr}() of "{self.variable}"')
        elif _is_part(kind):
            self.finding(node, f'takes .{node.attr} of "{self.variable}"')
        elif self._is_read(node):
            self.reach(parent if is_called else node, inner(kind))

    def subscript(self, node: ast.Subscript, index: ast.expr, kind: Kind) -> None:
        if _is_stored(node) and _is_part(kind):
            self.finding(node, f'changes a part of "{self.variable}"')
        elif self._is_read(node):
            is_slice = isinstance(index, ast.Slice)
            self.reach(node, copied(kind) if is_slice else inner(kind))

    def loop(self, target: ast.expr, iterable: ast.expr, kind: Kind) -> None:
        """A loop assigns each element of an iterable to its target."""
        match target:
            case ast.Tuple([_, second]) if _is_pairs(iterable):
                self.bind(second, inner(each(kind)))  # the first is a key or a number
            case _:
                self.bind(target, each(kind))

    def argument(self, call: ast.Call, node: ast.AST, kind: Kind | None) -> None:
        """It is an argument of a call, or of a keyword of one."""
        func, name = call.func, _name(call.func)
        if kind is None:
            return
        if own := self.own(func):
            for function in own:
                self.pass_to(function, call, node, kind)
        elif isinstance(func, ast.Attribute) and name in KEEPS and self.is_own(func):
            is_all = name in ("extend", "update") and node in call.args
            kept = (inner(kind), inner(inner(kind))) if is_all else (kind,)
            self.bind(func.value, *map(wrap, kept))
            self.reach(call, kind)
        elif (results := _results(name, kind, call, node)) is not None:
            self.reach(call, *results)
            self.by_key(call, each(kind))
        else:
            what = f'hands "{self.variable}", or a part of it, to {name}()'
            self.finding(call, f"{what}, which may change it")

    def own(self, func: ast.expr) -> list[Def]:
        """The file's own functions that a name may refer to."""
        if not isinstance(func, ast.Name):
            return []
        return self.functions[self.scope_of(func.id, func), func.id]

    def is_own(self, node: ast.expr) -> bool:
        """Whether the file itself created an object, judging by its name."""
        while isinstance(node, ast.Subscript | ast.Attribute | ast.Call):
            node = node.func if isinstance(node, ast.Call) else node.value
        if not isinstance(node, ast.Name):
            return True
        return node.id in self.bound[self.scope_of(node.id, node)] - self.imported

    def pass_to(self, own: Def, call: ast.Call, node: ast.AST, kind: Kind) -> None:
        """It is an argument of one of the file's own functions, so a parameter refers to it."""
        names = [arg.arg for arg in _parameters(own)]
        n_by_position = len(own.args.posonlyargs) + len(own.args.args)
        is_plain = not any(isinstance(arg, ast.Starred) for arg in call.args)
        if isinstance(node, ast.keyword) and node.arg in names:
            self.hold(own, node.arg, kind)
        elif is_plain and node in call.args[:n_by_position]:
            self.hold(own, names[call.args.index(node)], kind)
        else:
            for name in names:
                self.hold(own, name, kind, wrap(kind))

    def by_key(self, call: ast.Call, kind: Kind | None) -> None:
        """A function passed as key= gets the items that are sorted or compared."""
        for key in (k.value for k in call.keywords if k.arg == "key"):
            functions = [key] if isinstance(key, ast.Lambda) else self.own(key)
            for function in functions:
                for parameter in _parameters(function)[:1]:
                    self.hold(function, parameter.arg, kind)
            is_known = functions or isinstance(key, ast.Constant | ast.Call)
            if kind and not is_known and _name(key) not in PURE:
                self.finding(call, f'hands a part of "{self.variable}" to its key')


def _read_by(method: str, kind: Kind) -> Kind | None:
    """What a method of READS returns."""
    if method == "items":
        return wrap(copied(kind))
    if method in ("values", "copy"):
        return copied(kind)
    return inner(kind) if method == "get" else None


def _results(
    name: str, kind: Kind, call: ast.Call, node: ast.AST
) -> tuple[Kind | None, ...] | None:
    """How a function's result refers to its argument; None if it may change or keep it."""
    if name in COPIES:
        return (wrap(each(kind)),)
    if name in ("enumerate", "zip", "zip_longest", "product"):
        return (wrap(wrap(each(kind))),)
    if name in ("chain", "from_iterable"):
        return wrap(each(kind)), wrap(each(each(kind)))
    if name in ("min", "max"):
        return kind, each(kind)
    if name == "next":
        return (each(kind),)
    if name == "dict":
        is_value = isinstance(node, ast.keyword)
        return (wrap(kind),) if is_value else (copied(kind), copied(inner(kind)))
    if name == "sum":  # of nothing it is its start
        return () if node is call.args[0] else (kind,)
    return () if name in PURE else None


# ---- syntax ----------------------------------------------------------------------------------


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else "a function"


def _is_stored(node: ast.AST) -> bool:
    return isinstance(getattr(node, "ctx", None), ast.Store | ast.Del)


def _names_bound_by(node: ast.AST) -> list[str]:
    """The names that a node itself binds in its scope."""
    match node:
        case ast.Name(name):
            return [name] if _is_stored(node) else []
        case ast.Import(aliases) | ast.ImportFrom(_, aliases):
            return [(a.asname or a.name).partition(".")[0] for a in aliases]
        case ast.FunctionDef(name) | ast.AsyncFunctionDef(name) | ast.ClassDef(name):
            return [name]
        case ast.ExceptHandler(_, str(name)) | ast.MatchAs(_, str(name)):
            return [name]
        case ast.MatchStar(str(name)) | ast.MatchMapping(rest=str(name)):
            return [name]
    return []


def targets(node: ast.AST) -> list[ast.expr]:
    """What an assignment assigns to; nothing for another node."""
    if isinstance(node, ast.Assign):
        return node.targets
    return [node.target] if isinstance(node, ast.AnnAssign) else []


def _counterpart(part: ast.expr, whole: ast.AST, statement: ast.AST) -> ast.expr | None:
    """The target of a part of a tuple, if as many targets are assigned at once."""
    match whole, statement:
        case ast.Tuple(parts), ast.Assign([ast.Tuple(targets)]):
            is_plain = not any(isinstance(e, ast.Starred) for e in (*parts, *targets))
            if is_plain and len(parts) == len(targets):
                return targets[parts.index(part)]
    return None


def _parameters(function: Function) -> list[ast.arg]:
    args = function.args
    stars = [a for a in (args.vararg, args.kwarg) if a is not None]
    return [*args.posonlyargs, *args.args, *args.kwonlyargs, *stars]


def _with_default(args: ast.arguments, default: ast.expr) -> str:
    """The parameter that has a default."""
    n_without = len(args.posonlyargs) + len(args.args) - len(args.defaults)
    parameters = [*args.posonlyargs, *args.args, *args.kwonlyargs][n_without:]
    return parameters[[*args.defaults, *args.kw_defaults].index(default)].arg


def _is_pairs(node: ast.expr) -> bool:
    """Whether an iterable surely yields pairs whose first item is a key or a number."""
    match node:
        case ast.BinOp(left, _, right):
            return _is_pairs(left) and _is_pairs(right)
        case ast.Call(ast.Attribute(_, "items") | ast.Name("enumerate")):
            return True
        case ast.Call(ast.Name(name), [first, *_]):
            return name in COPIES and _is_pairs(first)
    return False
