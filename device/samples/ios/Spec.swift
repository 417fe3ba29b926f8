// SAMPLE, never compiled and never run: there was no Swift compiler. See README.md.
import Foundation

/// Raw value × `scale`, clipped to `min...max`; a missing or NaN value becomes `default`, which is already scaled.
struct FloatFeature: Decodable {
    let name: String
    let min: Double
    let max: Double
    let `default`: Double
    let scale: Double

    private enum CodingKeys: String, CodingKey { case name, min, max, `default`, scale }

    init(from decoder: Decoder) throws {
        let fields = try decoder.container(keyedBy: CodingKeys.self)
        name = try fields.decode(String.self, forKey: .name)
        min = try fields.decode(Double.self, forKey: .min)
        max = try fields.decode(Double.self, forKey: .max)
        `default` = try fields.decodeIfPresent(Double.self, forKey: .default) ?? 0
        scale = try fields.decodeIfPresent(Double.self, forKey: .scale) ?? 1
    }

    func input(_ raw: Double) -> Float {
        let scaled = raw * scale
        return Float(scaled.isNaN ? `default` : Swift.min(Swift.max(scaled, min), max))
    }
}

/// Codes `0..<size`; 0 is unknown, and so is every other code.
struct CategoryFeature: Decodable {
    let name: String
    let size: Int32

    func input(_ code: Int32) -> Int32 { (0..<size).contains(code) ? code : 0 }
}

/// How a device builds the model's inputs: `spec.json` of the bundle. `search` is not read: Core ML models have no graph for it.
struct FeatureSpec: Decodable {
    let version: Int64?
    let tasks: [String]
    let taskWeights: [String: Double]
    let candidatesMax: Int
    let eventsMax: Int
    let vectorWidth: Int
    let candidateFloats: [FloatFeature]
    let candidateCategories: [CategoryFeature]
    let feedbackFloats: [FloatFeature]
    let contextFloats: [FloatFeature]
    let numbering: String? // name of the codes of the categories

    private enum CodingKeys: String, CodingKey {
        case version, tasks, numbering
        case taskWeights = "task_weights"
        case candidatesMax = "candidates_max"
        case eventsMax = "events_max"
        case vectorWidth = "vector_width"
        case candidateFloats = "candidate_floats"
        case candidateCategories = "candidate_categories"
        case feedbackFloats = "feedback_floats"
        case contextFloats = "context_floats"
    }

    static let context: Set<String> = ["position", "hour"]
    static let countMax = 10_000
    static let widthMax = 4096

    /// Fields of an event that are no numbers.
    static let others: Set = [
        "version", "event_id", "user_id", "session_id", "item_id", "page_id", "experiment", "impression_ms", "age_ms", "actions",
    ]

    /// Feedback features are the fields of an event that are numbers, or may be, and the app's own actions.
    static func isFeedback(_ name: String) -> Bool {
        let event = FeedbackEvent(userId: 0, sessionId: "", itemId: 0, position: 0, impressionMs: 0, watchMs: 0)
        let isAction = name.range(of: "^[a-z][a-z0-9_]{0,47}$", options: .regularExpression) != nil
        return !others.contains(name) && (event.fields.keys.contains(name) || isAction)
    }

    /// A spec that this code cannot follow is refused, because it would leave features at their defaults.
    static func read(_ json: Data) throws -> FeatureSpec {
        let spec = try JSONDecoder().decode(FeatureSpec.self, from: json)
        try spec.need(spec.version ?? wireVersion == wireVersion, "$.version", "version \(wireVersion)")
        try spec.need((1...countMax).contains(spec.candidatesMax), "$.candidates_max", "1...\(countMax)")
        try spec.need((1...countMax).contains(spec.eventsMax), "$.events_max", "1...\(countMax)")
        try spec.need((0...widthMax).contains(spec.vectorWidth), "$.vector_width", "0...\(widthMax)")
        try spec.need(spec.candidateCategories.allSatisfy { $0.size >= 1 }, "$.candidate_categories", "sizes from 1")
        try spec.need(unique(spec.candidateCategories.map(\.name)), "$.candidate_categories", "unique names")
        try spec.check(spec.candidateFloats, "$.candidate_floats") { _ in true }
        try spec.check(spec.feedbackFloats, "$.feedback_floats", isKnown: isFeedback)
        try spec.check(spec.contextFloats, "$.context_floats", isKnown: context.contains)
        return spec
    }

    private func check(_ features: [FloatFeature], _ path: String, isKnown: (String) -> Bool) throws {
        try need(Self.unique(features.map(\.name)), path, "unique names")
        for feature in features {
            let at = "\(path).\(feature.name)"
            try need(isKnown(feature.name), at, "a feature that a device knows")
            try need(feature.min <= feature.default && feature.default <= feature.max, at, "min <= default <= max")
            try need(feature.scale.isFinite, at, "a finite scale")
        }
    }

    private func need(_ holds: Bool, _ path: String, _ expected: String) throws {
        if !holds { throw ContractError(path: path, expected: expected, got: "something else") }
    }

    static func unique(_ names: [String]) -> Bool { Set(names).count == names.count }
}
