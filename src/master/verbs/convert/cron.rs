//! uWSGI's `cron` and `cron2`: a command and when it runs. What only says how often becomes a service; a time of the day is
//! for cron, and becomes the line of a crontab.

/// A command and when it runs: minute, hour, day, month, weekday. As uWSGI has them: -1 is each, and -5 every fifth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cron {
    when: [i32; 5],
    pub command: String,
}

impl Cron {
    /// `-5 -1 -1 -1 -1 python clean.py`
    pub fn parse(text: &str) -> Option<Cron> {
        let mut words = text.split_whitespace();
        let mut when = [-1; 5];
        for field in &mut when {
            *field = words.next()?.parse().ok()?;
        }
        let command = words.collect::<Vec<&str>>().join(" ");
        (!command.is_empty()).then_some(Cron { when, command })
    }

    /// `minute=-5,unique=1 python clean.py`
    pub fn parse_named(text: &str) -> Option<Cron> {
        let (options, command) = text.trim().split_once(char::is_whitespace)?;
        let mut when = [-1; 5];
        for option in options.split(',') {
            let (name, value) = option.split_once('=')?;
            let names = ["minute", "hour", "day", "month", "week"];
            // Others say how a run is watched: one at a time is always so here.
            if let Some(at) = names.iter().position(|known| *known == name) {
                when[at] = value.parse().ok()?;
            }
        }
        Some(Cron { when, command: command.trim().to_owned() })
    }

    /// As `every` has it; None: it has a time of the day, or a day.
    pub fn every(&self) -> Option<String> {
        match self.when {
            [-1, -1, -1, -1, -1] => Some("1m".to_owned()),
            [minutes @ ..=-2, -1, -1, -1, -1] => Some(format!("{}m", -i64::from(minutes))),
            [(0..), -1, -1, -1, -1] => Some("1h".to_owned()),
            [(0..), hours @ ..=-2, -1, -1, -1] => Some(format!("{}h", -i64::from(hours))),
            _time_of_day => None,
        }
    }

    /// As a crontab has it (crontab(5)).
    pub fn line(&self) -> String {
        let fields: Vec<String> = self.when.iter().map(|field| field_of_crontab(*field)).collect();
        format!("{} {}", fields.join(" "), self.command)
    }
}

fn field_of_crontab(field: i32) -> String {
    match field {
        -1 => "*".to_owned(),
        each if each < -1 => format!("*/{}", -i64::from(each)),
        fixed => fixed.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_often_becomes_a_duration_and_a_time_of_the_day_a_line_of_a_crontab() {
        let cases = [
            ("-1 -1 -1 -1 -1 x", Some("1m"), "* * * * * x"),
            ("-15 -1 -1 -1 -1 python clean.py", Some("15m"), "*/15 * * * * python clean.py"),
            ("30 -1 -1 -1 -1 x", Some("1h"), "30 * * * * x"),
            ("0 -6 -1 -1 -1 x", Some("6h"), "0 */6 * * * x"),
            ("59 2 -1 -1 -1 x", None, "59 2 * * * x"),
            ("0 4 -1 -1 1 x", None, "0 4 * * 1 x"),
        ];
        for (text, every, line) in cases {
            let cron = Cron::parse(text).unwrap();
            assert_eq!((cron.every().as_deref(), cron.line().as_str()), (every, line), "{text}");
        }
        let named = Cron::parse_named("minute=-5,unique=1,harakiri=30 python clean.py").unwrap();
        assert_eq!((named.every().as_deref(), named.command.as_str()), (Some("5m"), "python clean.py"));
        for wrong in ["", "1 2 3", "a b c d e x", "-1 -1 -1 -1 -1"] {
            assert_eq!(Cron::parse(wrong), None, "{wrong}");
        }
    }
}
