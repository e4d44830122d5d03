//! From the parser's tree to a plan. Refuses what hourly rollups cannot answer exactly.

use promql_parser::label::Labels as LabelNames;
use promql_parser::parser::value::ValueType;
use promql_parser::parser::{
    AggregateExpr, BinaryExpr, Call as CallExpr, Expr, LabelModifier, MatrixSelector, SubqueryExpr,
    VectorMatchCardinality, VectorSelector, parse,
};

use super::PromqlError;
use super::functions::{
    AGGREGATES, AggregateOperator, CALL_FUNCTIONS, CallFunction, OPERATORS, SUBQUERY_FUNCTIONS,
    WINDOW_FUNCTIONS, WindowFunction, named, names, register_extensions,
};
use super::grid::{Grid, hours_of};
use super::labels::Labels;
use super::plan::{
    Aggregate, Binary, Call, Cardinality, CompiledQuery, Fetch, Grouping, LabelSelection, Node,
    Plan, RangeEnd, Subquery, Window,
};
use super::scan::check_text;
use super::selector::{SeriesSelector, range_end};
use crate::model::event::{MAX_LABELS, check_label_name};
use crate::model::matcher_syntax::MAX_MATCHERS;

/// Most different selectors of one query: each is a query of its own to the engine.
const MAX_FETCHES: usize = 32;

/// Compiles a query for the times of `grid`.
///
/// # Errors
/// If it is no PromQL, too large, or cannot be answered exactly.
pub fn compile(text: &str, grid: Grid) -> Result<CompiledQuery, PromqlError> {
    check_text(text)?;
    register_extensions().map_err(PromqlError::Syntax)?;
    let parsed = parse(text).map_err(PromqlError::Syntax)?;
    let mut compiler = Compiler { fetches: Vec::new(), top: grid, replacements: 0 };
    let root = compiler.node(&parsed, grid, Need::Number)?;
    Ok(CompiledQuery { fetches: compiler.fetches, grid, root })
}

/// What the surrounding expression computes from a vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Number,
    Histogram { quantiles: bool, distinct: bool },
}

struct Compiler {
    fetches: Vec<Fetch>,
    /// The times of the whole query.
    top: Grid,
    /// Calls of `label_replace`, each of which compiles a regular expression.
    replacements: usize,
}

fn unsupported<T>(why: impl Into<String>) -> Result<T, PromqlError> {
    Err(PromqlError::Unsupported(why.into()))
}

/// Without the parentheses around it.
fn bare(mut expr: &Expr) -> &Expr {
    while let Expr::Paren(inner) = expr {
        expr = &inner.expr;
    }
    expr
}

fn label_list(labels: &LabelNames) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in &labels.labels {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

fn selection(modifier: Option<&LabelModifier>, default: LabelSelection) -> LabelSelection {
    match modifier {
        None => default,
        Some(LabelModifier::Include(labels)) => LabelSelection::Only(label_list(labels)),
        Some(LabelModifier::Exclude(labels)) => LabelSelection::Except(label_list(labels)),
    }
}

/// The labels, if the query engine can group by them.
fn engine_grouping(groups: &LabelSelection) -> Option<Grouping> {
    match groups {
        LabelSelection::Only(names)
            if names.len() <= MAX_LABELS
                && names.iter().all(|name| check_label_name(name).is_ok()) =>
        {
            Some(Grouping::Labels(names.clone()))
        }
        _ => None,
    }
}

/// The longest unit of the query engine at whose multiples all ranges begin and end; None for the
/// whole range at once.
fn unit(grid: Grid, end: RangeEnd, range: i64) -> Option<i64> {
    if grid.count == 1 || end.at.is_some() {
        return None;
    }
    let fits = |unit: &i64| {
        [grid.start - end.offset, grid.step, range].iter().all(|hours| hours % unit == 0)
    };
    Some([24, 6].into_iter().find(fits).unwrap_or(1))
}

impl Compiler {
    fn node(&mut self, expr: &Expr, grid: Grid, need: Need) -> Result<Node, PromqlError> {
        let expr = bare(expr);
        if need != Need::Number {
            check_histogram(expr)?;
        }
        let plan = match expr {
            Expr::NumberLiteral(number) => Plan::Number(number.val),
            Expr::Unary(unary) => Plan::Negate(self.boxed(&unary.expr, grid)?),
            Expr::Binary(binary) => self.binary(binary, grid)?,
            Expr::Aggregate(aggregate) => self.aggregate(aggregate, grid, need)?,
            Expr::Call(call) => self.call(call, grid, need)?,
            Expr::VectorSelector(selector) => self.bare_selector(selector, grid, need, None)?,
            Expr::MatrixSelector(_) => {
                return unsupported(
                    "a range of events has no single value, and rollups do not hold events: use \
                     count_over_time(…[1h]) or another function of ranges, or query the archive",
                );
            }
            Expr::Subquery(_) => {
                return unsupported(
                    "a subquery has no single value: use max_over_time(…) or another function of \
                     ranges around it, or ask for a range of times",
                );
            }
            Expr::StringLiteral(_) => return unsupported("a string has no value over time"),
            Expr::Paren(_) | Expr::Extension(_) => {
                return unsupported("this expression is not supported");
            }
        };
        Ok(Node { grid, plan })
    }

    fn boxed(&mut self, expr: &Expr, grid: Grid) -> Result<Box<Node>, PromqlError> {
        self.node(expr, grid, Need::Number).map(Box::new)
    }

    /// A selector alone: the events of the hour before, as a native histogram whose number is
    /// their count.
    fn bare_selector(
        &mut self,
        selector: &VectorSelector,
        grid: Grid,
        need: Need,
        grouping: Option<Grouping>,
    ) -> Result<Plan, PromqlError> {
        let name = grouping.is_none().then(|| SeriesSelector::of(selector)).transpose()?;
        let name = name.and_then(|selector| selector.metric);
        let grouping = grouping.unwrap_or(Grouping::Series);
        let end = range_end(selector.offset.as_ref(), selector.at.as_ref(), self.top)?;
        let read = ReadEvents { selector, function: WindowFunction::Increase, range: 1, end };
        self.window(read, (grid, need), grouping, name)
    }

    /// A function of a range of events.
    fn range_function(
        &mut self,
        function: WindowFunction,
        matrix: &MatrixSelector,
        (grid, need): (Grid, Need),
        grouping: Grouping,
    ) -> Result<Plan, PromqlError> {
        let selector = &matrix.vs;
        let end = range_end(selector.offset.as_ref(), selector.at.as_ref(), self.top)?;
        let range = hours_of(matrix.range.as_millis(), "a range")?;
        let read = ReadEvents { selector, function, range, end };
        self.window(read, (grid, need), grouping, None)
    }

    fn window(
        &mut self,
        read: ReadEvents<'_>,
        (grid, need): (Grid, Need),
        grouping: Grouping,
        name: Option<String>,
    ) -> Result<Plan, PromqlError> {
        let ReadEvents { selector, function, range, end } = read;
        let SeriesSelector { matchers, .. } = SeriesSelector::of(selector)?;
        let metric = SeriesSelector::of(selector)?.one_metric()?.to_owned();
        let function = match (function, need) {
            (WindowFunction::Increase, Need::Number) => WindowFunction::Count,
            (WindowFunction::Rate, Need::Number) => WindowFunction::CountPerSecond,
            (function, _) => function,
        };
        let (quantiles, distinct) = match need {
            Need::Histogram { quantiles, distinct } => (quantiles, distinct),
            Need::Number => {
                (function == WindowFunction::Quantile, function == WindowFunction::Distinct)
            }
        };
        let (first, last) = end.bounds(grid);
        let fetch = Fetch {
            metric,
            matchers,
            grouping,
            hours: first - range..last,
            unit: unit(grid, end, range),
            quantiles,
            distinct,
        };
        let fetch = self.fetch(fetch)?;
        Ok(Plan::Window(Window { fetch, function, parameter: None, range, end, name }))
    }

    fn fetch(&mut self, fetch: Fetch) -> Result<usize, PromqlError> {
        if let Some(at) = self.fetches.iter().position(|known| *known == fetch) {
            return Ok(at);
        }
        if self.fetches.len() == MAX_FETCHES {
            return unsupported(format!(
                "the query reads more than {MAX_FETCHES} different selections of events: split it"
            ));
        }
        self.fetches.push(fetch);
        Ok(self.fetches.len() - 1)
    }

    fn aggregate(
        &mut self,
        expr: &AggregateExpr,
        grid: Grid,
        need: Need,
    ) -> Result<Plan, PromqlError> {
        let name = expr.op.to_string();
        let Some(operator) = named(AGGREGATES, &name) else {
            return unsupported(format!(
                "{name} is not supported; there are {}",
                names(AGGREGATES)
            ));
        };
        if need != Need::Number {
            check_histogram(bare(&expr.expr))?;
        }
        let groups = selection(expr.modifier.as_ref(), LabelSelection::Only(Vec::new()));
        if let Some(plan) = self.aggregate_while_reading(operator, expr, (grid, need), &groups)? {
            return Ok(plan);
        }
        let (mut parameter, mut label) = (None, None);
        match expr.param.as_deref().map(bare) {
            None => {}
            Some(Expr::StringLiteral(text)) if text.val.is_empty() => {
                let why = format!("{name}: the label that is set has an empty name");
                return Err(PromqlError::Syntax(why));
            }
            Some(Expr::StringLiteral(text)) => label = Some(text.val.clone()),
            Some(number) => parameter = Some(self.boxed(number, grid)?),
        }
        let inner = Box::new(self.node(&expr.expr, grid, need)?);
        Ok(Plan::Aggregate(Aggregate { operator, inner, parameter, label, groups }))
    }

    /// Sums of counts and sums, smallest of smallest and largest of largest values are what the
    /// query engine computes itself, from the rollups of all series of a group.
    fn aggregate_while_reading(
        &mut self,
        operator: AggregateOperator,
        expr: &AggregateExpr,
        (grid, need): (Grid, Need),
        groups: &LabelSelection,
    ) -> Result<Option<Plan>, PromqlError> {
        let Some(grouping) = engine_grouping(groups) else { return Ok(None) };
        match bare(&expr.expr) {
            Expr::VectorSelector(selector) if operator == AggregateOperator::Sum => {
                self.bare_selector(selector, grid, need, Some(grouping)).map(Some)
            }
            Expr::Call(call) => {
                let function = named(WINDOW_FUNCTIONS, call.func.name);
                let argument = call.args.args.first().map(|argument| bare(argument));
                let (Some(function), Some(Expr::MatrixSelector(matrix))) = (function, argument)
                else {
                    return Ok(None);
                };
                let merges = match operator {
                    AggregateOperator::Sum => matches!(
                        function,
                        WindowFunction::Increase
                            | WindowFunction::Rate
                            | WindowFunction::Count
                            | WindowFunction::Sum
                    ),
                    AggregateOperator::Min => function == WindowFunction::Min,
                    AggregateOperator::Max => function == WindowFunction::Max,
                    _ => false,
                };
                if !merges {
                    return Ok(None);
                }
                self.range_function(function, matrix, (grid, need), grouping).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn binary(&mut self, expr: &BinaryExpr, grid: Grid) -> Result<Plan, PromqlError> {
        let name = expr.op.to_string();
        let Some(operator) = named(OPERATORS, &name) else {
            return unsupported(format!("the operator {name} is not supported"));
        };
        let modifier = expr.modifier.as_ref();
        if modifier.is_some_and(|m| m.fill_values.lhs.or(m.fill_values.rhs).is_some()) {
            return unsupported("fill, fill_left and fill_right are not supported");
        }
        let cardinality = match modifier.map(|modifier| &modifier.card) {
            Some(VectorMatchCardinality::ManyToOne(labels)) => {
                Cardinality::ManyToOne(label_list(labels))
            }
            Some(VectorMatchCardinality::OneToMany(labels)) => {
                Cardinality::OneToMany(label_list(labels))
            }
            _ => Cardinality::OneToOne,
        };
        let matching = selection(
            modifier.and_then(|modifier| modifier.matching.as_ref()),
            LabelSelection::Except(Vec::new()),
        );
        let (left, right) = (self.boxed(&expr.lhs, grid)?, self.boxed(&expr.rhs, grid)?);
        let to_bool = expr.return_bool();
        Ok(Plan::Binary(Binary { operator, left, right, to_bool, matching, cardinality }))
    }

    fn call(&mut self, call: &CallExpr, grid: Grid, need: Need) -> Result<Plan, PromqlError> {
        let (name, args) = (call.func.name, &call.args.args);
        match name {
            "time" => return Ok(Plan::Time),
            "pi" => return Ok(Plan::Number(std::f64::consts::PI)),
            "absent_over_time" => return self.absent_over_time(call, grid),
            _ => {}
        }
        let range = args
            .iter()
            .map(|argument| bare(argument))
            .find(|argument| matches!(argument, Expr::MatrixSelector(_) | Expr::Subquery(_)));
        match range {
            Some(Expr::MatrixSelector(matrix)) => {
                let Some(function) = named(WINDOW_FUNCTIONS, name) else {
                    return unsupported(format!(
                        "{name} of events is not supported: hours know no order of their events; \
                         there are {}",
                        names(WINDOW_FUNCTIONS)
                    ));
                };
                let mut plan =
                    self.range_function(function, matrix, (grid, need), Grouping::Series)?;
                if let Plan::Window(window) = &mut plan {
                    window.parameter = self.range_parameter(call, grid)?;
                }
                Ok(plan)
            }
            Some(Expr::Subquery(subquery)) => self.subquery(call, subquery, grid),
            _ => self.instant_call(call, grid, need),
        }
    }

    /// The number before the range, as in `quantile_over_time(0.9, …)`.
    fn range_parameter(
        &mut self,
        call: &CallExpr,
        grid: Grid,
    ) -> Result<Option<Box<Node>>, PromqlError> {
        let number =
            call.args.args.iter().find(|argument| argument.value_type() == ValueType::Scalar);
        number.map(|number| self.boxed(number, grid)).transpose()
    }

    fn absent_over_time(&mut self, call: &CallExpr, grid: Grid) -> Result<Plan, PromqlError> {
        let argument = call.args.args.first().map(|argument| bare(argument));
        let Some(Expr::MatrixSelector(matrix)) = argument else {
            return unsupported("absent_over_time takes a range of events, as page_view[1h]");
        };
        let labels = SeriesSelector::of(&matrix.vs)?.absent_labels();
        let plan = self.range_function(
            WindowFunction::Present,
            matrix,
            (grid, Need::Number),
            Grouping::Labels(Vec::new()),
        )?;
        let inner = Some(Box::new(Node { grid, plan }));
        let function = CallFunction::Absent;
        Ok(Plan::Call(Call { function, inner, numbers: Vec::new(), texts: Vec::new(), labels }))
    }

    fn subquery(
        &mut self,
        call: &CallExpr,
        subquery: &SubqueryExpr,
        grid: Grid,
    ) -> Result<Plan, PromqlError> {
        let Some(function) = named(SUBQUERY_FUNCTIONS, call.func.name) else {
            return unsupported(format!(
                "{} of a subquery is not supported; there are {}",
                call.func.name,
                names(SUBQUERY_FUNCTIONS)
            ));
        };
        let range = hours_of(subquery.range.as_millis(), "a range")?;
        let step = match subquery.step {
            Some(step) => hours_of(step.as_millis(), "a step")?,
            None => 1,
        };
        let end = range_end(subquery.offset.as_ref(), subquery.at.as_ref(), self.top)?;
        let inner = match Grid::subquery(end.bounds(grid), range, step)? {
            Some(times) => Some(self.boxed(&subquery.expr, times)?),
            None => None,
        };
        let parameter = self.range_parameter(call, grid)?;
        Ok(Plan::Subquery(Subquery { inner, function, parameter, range, end }))
    }

    fn instant_call(
        &mut self,
        call: &CallExpr,
        grid: Grid,
        need: Need,
    ) -> Result<Plan, PromqlError> {
        let name = call.func.name;
        let Some(function) = named(CALL_FUNCTIONS, name) else {
            return unsupported(format!(
                "the function {name} is not supported; there are {}, {}",
                names(WINDOW_FUNCTIONS),
                names(CALL_FUNCTIONS)
            ));
        };
        let need = match function {
            CallFunction::HistogramQuantile => Need::Histogram { quantiles: true, distinct: false },
            CallFunction::HistogramDistinct => Need::Histogram { quantiles: false, distinct: true },
            _ if function.is_of_histograms() => {
                Need::Histogram { quantiles: false, distinct: false }
            }
            CallFunction::LabelReplace | CallFunction::LabelJoin => need,
            _ => Need::Number,
        };
        self.replacements += usize::from(function == CallFunction::LabelReplace);
        if self.replacements > MAX_MATCHERS {
            let why = format!("the query has more than {MAX_MATCHERS} calls of label_replace");
            return Err(PromqlError::Syntax(why));
        }
        let (mut inner, mut numbers, mut texts) = (None, Vec::new(), Vec::new());
        let mut labels = Labels::default();
        for argument in &call.args.args {
            match (bare(argument), argument.value_type()) {
                (Expr::StringLiteral(text), _) => texts.push(text.val.clone()),
                (_, ValueType::Scalar) => numbers.push(self.node(argument, grid, Need::Number)?),
                (vector, _) => {
                    if let (CallFunction::Absent, Expr::VectorSelector(selector)) =
                        (function, vector)
                    {
                        labels = SeriesSelector::of(selector)?.absent_labels();
                    }
                    inner = Some(Box::new(self.node(argument, grid, need)?));
                }
            }
        }
        let call = Call { function, inner, numbers, texts, labels };
        super::calls::check(&call)?;
        Ok(Plan::Call(call))
    }
}

/// The events that a window function is about.
struct ReadEvents<'e> {
    selector: &'e VectorSelector,
    function: WindowFunction,
    range: i64,
    end: RangeEnd,
}

/// Refuses numbers where native histograms are needed.
fn check_histogram(expr: &Expr) -> Result<(), PromqlError> {
    let is_histogram = match expr {
        Expr::VectorSelector(_) => true,
        Expr::Aggregate(aggregate) => aggregate.op.to_string() == "sum",
        Expr::Call(call) => {
            matches!(call.func.name, "increase" | "rate" | "label_replace" | "label_join")
        }
        _ => false,
    };
    if is_histogram {
        return Ok(());
    }
    unsupported(format!(
        "histogram_… takes native histograms, which are a selector, increase(…[1h]), rate(…[1h]), \
         and sum by (…) of them: not {:?}",
        crate::model::suggest::excerpt(&expr.to_string())
    ))
}
