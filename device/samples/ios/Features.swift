// SAMPLE, never compiled and never run: there was no Swift compiler. See README.md.
import Foundation

/// A flat array in row-major order and its shape: what goes into a model.
enum Tensor {
    case floats([Float], shape: [Int])
    case ints([Int32], shape: [Int])
}

/// A page as the model sees it, in cloud order without repeats. Built once when the page arrives; a swipe only copies rows.
/// Features that could not be read (`readable` is false) are defaults, and the page can only be shown in cloud order.
struct PageFeatures {
    let itemIds: [Int64]
    let floats: [[Float]]
    let categories: [[Int32]]
    var vectors: [[Float]]? // both nil where the page has none of the spec's width
    var userVector: [Float]?
    let readable: Bool
    let duplicates: Int
    let missingColumns: Int

    /// For the self-contained form: vectors of another lower half must not reach a split model, not even as those of events.
    func withoutVectors() -> PageFeatures {
        var copy = self
        copy.vectors = nil
        copy.userVector = nil
        return copy
    }
}

/// Builds the model's inputs as one spec says. It keeps no state, so all sessions can share it.
struct FeatureBuilder {
    let spec: FeatureSpec

    private typealias Column<T> = (Int) -> T

    /// Throws when even the item ids cannot be read.
    func page(_ page: Page) throws -> PageFeatures {
        let ids = try page.itemId.table("$.candidates.item_id", dtype: "i8", dims: 1)
        var seen: Set<Int64> = []
        let kept = (0..<ids.rows).filter { seen.insert(ids.long($0)).inserted } // the first of each id
        let floats = try? floatColumns(page, rows: ids.rows)
        let categories = try? categoryColumns(page, rows: ids.rows)
        let readable = floats != nil && categories != nil
        // A column returns the raw value of a row. A missing column returns the feature's default for every row.
        let floatOf = spec.candidateFloats.map { (feature: $0, raw: readable ? floats?[$0.name] : nil) }
        let codeOf = spec.candidateCategories.map { (feature: $0, raw: readable ? categories?[$0.name] : nil) }
        let missing = floatOf.filter { $0.raw == nil }.count + codeOf.filter { $0.raw == nil }.count
        let vectors = vectorRows(page, rows: ids.rows)
        return PageFeatures(
            itemIds: kept.map { ids.long($0) },
            floats: kept.map { row in floatOf.map { $0.feature.input($0.raw?(row) ?? .nan) } },
            categories: kept.map { row in codeOf.map { $0.feature.input($0.raw?(row) ?? 0) } },
            vectors: vectors.map { own in kept.map { own.rows[$0] } },
            userVector: vectors?.user,
            readable: readable,
            duplicates: ids.rows - kept.count,
            missingColumns: readable ? missing : 0
        )
    }

    private func floatColumns(_ page: Page, rows: Int) throws -> [String: Column<Double>] {
        let table = try readTable(page.floats, "$.candidates.floats", dtype: "f4", rows: rows)
        return columns(page.floats) { column in { row in Double(table.float(row, column)) } }
    }

    private func categoryColumns(_ page: Page, rows: Int) throws -> [String: Column<Int32>] {
        let table = try readTable(page.categories, "$.candidates.categories", dtype: "i4", rows: rows)
        if let mine = spec.numbering, let other = page.numbering, mine != other { return [:] } // other codes
        return columns(page.categories) { column in { row in table.int(row, column) } }
    }

    /// Columns are found by name, never by index: a page may have more columns than the spec names, in any order.
    private func columns<T>(_ group: Columns, _ column: (Int) -> Column<T>) -> [String: Column<T>] {
        Dictionary(uniqueKeysWithValues: group.names.enumerated().map { ($0.element, column($0.offset)) })
    }

    private func readTable(_ group: Columns, _ path: String, dtype: String, rows: Int) throws -> Block.Table {
        guard FeatureSpec.unique(group.names) else {
            throw ContractError(path: "\(path).names", expected: "unique names", got: "\(group.names)")
        }
        return try checked(group.values.table("\(path).values", dtype: dtype, dims: 2), rows, group.names.count, "\(path).values")
    }

    private func checked(_ table: Block.Table, _ rows: Int, _ columns: Int, _ path: String) throws -> Block.Table {
        guard table.rows == rows, table.columns == columns else {
            throw ContractError(path: "\(path).shape", expected: "[\(rows), \(columns)]", got: "[\(table.rows), \(table.columns)]")
        }
        return table
    }

    private func vectorRows(_ page: Page, rows: Int) -> (rows: [[Float]], user: [Float])? {
        guard let vector = page.vector, let userVector = page.userVector else { return nil }
        let width = spec.vectorWidth
        guard let own = try? checked(vector.table("$.candidates.vector", dtype: "f2", dims: 2), rows, width, "$.candidates.vector"),
              let user = try? checked(userVector.table("$.user_vector", dtype: "f2", dims: 1), width, 1, "$.user_vector")
        else { return nil }
        return ((0..<rows).map { row in (0..<width).map { finite(own.half(row, $0)) } }, (0..<width).map { finite(user.half($0, 0)) })
    }

    private func finite(_ value: Float) -> Float { value.isFinite ? value : 0 }

    /// `event_feedback` of one event. A value that the platform does not report becomes the feature's default.
    func feedback(_ event: FeedbackEvent) -> [Float] {
        let fields = event.fields
        return spec.feedbackFloats.map { feature in
            switch fields[feature.name] {
            case .int(let int): return feature.input(Double(int))
            case .double(let double): return feature.input(double)
            case .bool(let bool): return feature.input(bool ? 1 : 0)
            case nil: return feature.input(event.actions.contains(feature.name) ? 1 : 0) // one of the app's own actions
            default: return feature.input(.nan)
            }
        }
    }

    static let hourMs: Int64 = 3_600_000

    /// `context` of this moment: the impressions so far, and the whole hour of the day in UTC, whatever the user's time zone.
    func context(position: Int64, nowMs: Int64) -> [Float] {
        // Swift's division rounds towards zero and its remainder may be negative; before 1970 that would be another hour.
        let ofDay = ((nowMs % (24 * Self.hourMs)) + 24 * Self.hourMs) % (24 * Self.hourMs)
        let values = ["position": Double(position), "hour": Double(ofDay / Self.hourMs)]
        return spec.contextFloats.map { $0.input(values[$0.name] ?? .nan) }
    }
}

/// Rows [1, n, width] as one array; zeros where a row is nil.
func rows(_ rows: [[Float]?], width: Int) -> Tensor {
    .floats(rows.flatMap { $0 ?? [Float](repeating: 0, count: width) }, shape: [1, rows.count, width])
}

func codes(_ rows: [[Int32]?], width: Int) -> Tensor {
    .ints(rows.flatMap { $0 ?? [Int32](repeating: 0, count: width) }, shape: [1, rows.count, width])
}
