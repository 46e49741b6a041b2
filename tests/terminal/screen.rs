//! A screen without a right margin, and the few control sequences that the program may use.
//!
//! Rule: a sequence that is not known here fails the test, so that nothing is drawn that was never looked at.

/// Lines, and where the next letter goes.
#[derive(Default)]
pub struct Screen {
    lines: Vec<Vec<char>>,
    row: usize,
    column: usize,
    /// Each line as it was when the cursor left it.
    drawn: Vec<String>,
}

impl Screen {
    /// What is to be seen in the end.
    pub fn shows(sent: &str) -> String {
        let screen = Screen::of(sent);
        let lines =
            screen.lines.iter().map(|line| line.iter().collect::<String>().trim_end().to_string() + "\n");
        lines.collect::<String>().trim_end_matches('\n').to_string() + "\n"
    }

    /// Every line that was to be seen at some moment.
    pub fn drawn(sent: &str) -> Vec<String> {
        Screen::of(sent).drawn
    }

    fn of(sent: &str) -> Screen {
        let mut screen = Screen { lines: vec![Vec::new()], ..Screen::default() };
        let mut signs = sent.chars();
        while let Some(sign) = signs.next() {
            match sign {
                '\r' => screen.leave(0),
                '\n' => {
                    screen.row += 1;
                    screen.reach();
                }
                '\u{1b}' => screen.control(&mut signs),
                letter => screen.write(letter),
            }
        }
        screen
    }

    /// There is a line where the cursor stands.
    fn reach(&mut self) {
        self.lines.resize_with(self.lines.len().max(self.row + 1), Vec::new);
    }

    fn leave(&mut self, column: usize) {
        self.drawn.push(self.lines[self.row].iter().collect());
        self.column = column;
    }

    fn write(&mut self, letter: char) {
        let line = &mut self.lines[self.row];
        line.resize(line.len().max(self.column + 1), ' ');
        line[self.column] = letter;
        self.column += 1;
    }

    fn control(&mut self, signs: &mut impl Iterator<Item = char>) {
        assert_eq!(signs.next(), Some('['), "a sequence that is no CSI");
        let mut number = String::new();
        let end = loop {
            match signs.next().unwrap() {
                digit if digit.is_ascii_digit() || digit == ';' || digit == '?' => number.push(digit),
                end => break end,
            }
        };
        let count = number.parse().unwrap_or(1);
        match (end, number.as_str()) {
            // Colours and weights.
            ('m', _) => {}
            ('K', "2") => {
                self.leave(self.column);
                self.lines[self.row].clear();
            }
            ('K', "" | "0") => self.lines[self.row].truncate(self.column),
            ('J', "" | "0") => {
                self.lines[self.row].truncate(self.column);
                self.lines.truncate(self.row + 1);
            }
            ('A', _) => self.row = self.row.saturating_sub(count),
            ('B', _) => {
                self.row += count;
                self.reach();
            }
            (end, number) => panic!("what does ESC [ {number} {end} do?"),
        }
    }
}
