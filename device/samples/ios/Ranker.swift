// SAMPLE, never compiled and never run: there was no Swift compiler. See README.md.
import Foundation

/// With the cloud's vectors, or without.
enum Form: String, CaseIterable {
    case split
    case selfContained = "self_contained"
}

/// The interface to the platform's runtime: one form's whole model, for any count of candidates and events. Core ML's export has no
/// stages. `CoreMLModel` is the one for a phone.
protocol Model {
    /// `scores`, flat [1, candidates, tasks]. Uses those of `inputs` that its graph has.
    func scores(_ inputs: [String: Tensor]) throws -> [Float]
}

/// A run that failed. The session continues in cloud order.
struct ModelError: Error {
    let message: String
}

/// The part of a page that was not shown yet: `rows` of it, in cloud order.
struct Remaining {
    let page: PageFeatures
    var rows: [Int]

    func item(at index: Int) -> Int64 { page.itemIds[rows[index]] }

    /// For each of the first `count` candidates, the index of the first one with equal features.
    func alike(_ count: Int) -> [Int] {
        var first: [[UInt32]: Int] = [:]
        return rows.prefix(count).enumerated().map { index, row in
            let floats = page.floats[row] + (page.vectors?[row] ?? [])
            // The sum turns -0 into 0.
            let key = floats.map { ($0 + 0).bitPattern } + page.categories[row].map { UInt32(bitPattern: $0) }
            if let known = first[key] { return known }
            first[key] = index
            return index
        }
    }
}

/// Orders the remaining items of a session. It keeps no state of a session.
struct Ranker {
    let spec: FeatureSpec
    let splitVersion: String
    let models: [Form: any Model]
    let builder: FeatureBuilder
    private let weights: [Float]

    init(spec: FeatureSpec, splitVersion: String, models: [Form: any Model]) {
        self.spec = spec
        self.splitVersion = splitVersion
        self.models = models
        builder = FeatureBuilder(spec: spec)
        weights = spec.tasks.map { Float(spec.taskWeights[$0] ?? 0) }
    }

    /// Indices into `held.rows`, best first by the weighted sum of the scores, ties in cloud order; what is beyond `candidates_max`
    /// follows in cloud order. Nil when a score is not finite. A runtime rounds a candidate by its place, so those with equal
    /// features take the sum of their first, and keep cloud order.
    func order(_ form: Form, _ held: Remaining, _ history: EventHistory, nowMs: Int64, position: Int64) throws -> [Int]? {
        guard let model = models[form] else { throw ModelError(message: "no model of the form \(form)") }
        let count = min(held.rows.count, spec.candidatesMax)
        let scores = try model.scores(inputs(form, count, held, history, nowMs: nowMs, position: position))
        guard scores.count == count * weights.count else {
            throw ModelError(message: "expected \(count * weights.count) scores, got \(scores.count)")
        }
        let sums = (0..<count).map { row in
            zip(weights, scores[(row * weights.count)...]).reduce(Float(0)) { $0 + $1.0 * $1.1 }
        }
        let total = held.alike(count).map { sums[$0] }
        guard total.allSatisfy(\.isFinite) else { return nil }
        // `sort` does not promise to be stable, so the index breaks ties.
        let best = (0..<count).sorted { total[$0] != total[$1] ? total[$0] > total[$1] : $0 < $1 }
        return best + (count..<held.rows.count)
    }

    private func inputs(
        _ form: Form, _ count: Int, _ held: Remaining, _ history: EventHistory, nowMs: Int64, position: Int64
    ) -> [String: Tensor] {
        let page = held.page
        let window = held.rows.prefix(count)
        let context = builder.context(position: position, nowMs: nowMs)
        var inputs = history.inputs(nowMs: nowMs, position: position)
        inputs["candidate_float"] = rows(window.map { page.floats[$0] }, width: spec.candidateFloats.count)
        inputs["candidate_category"] = codes(window.map { page.categories[$0] }, width: spec.candidateCategories.count)
        inputs["candidate_mask"] = .floats([Float](repeating: 1, count: count), shape: [1, count])
        inputs["context"] = .floats(context, shape: [1, context.count])
        if form == .split, let vectors = page.vectors, let userVector = page.userVector {
            inputs["candidate_vector"] = rows(window.map { vectors[$0] }, width: spec.vectorWidth)
            inputs["user_vector"] = .floats(userVector, shape: [1, spec.vectorWidth])
        }
        return inputs
    }
}
